"""What the operators have in common that read one number off the shared embedding of a picture by a head."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from producer.operator.encoder import Encoder
from producer.operator.head import Head
from producer.operator.judgement import Sample, Score


class Headed:
    """An operator but for its `name` and verdict: `score` is what `read` makes of the head's number."""

    name: str
    version = 1

    def __init__(self, model: Path, head: Path) -> None:
        """Check the folders of the encoder and of the head."""
        self._encoder = Encoder(f"operators.{self.name}.model", model)
        self._head = Head(f"operators.{self.name}.head", head, self._encoder)

    def read(self, number: float) -> float:
        """The score."""
        return number

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        embeddings = self._encoder.embed(samples)
        known = [one for one in embeddings if one is not None]
        left = iter(self._head(np.stack(known)).tolist() if known else [])
        return [Score(None if one is None else self.read(next(left))) for one in embeddings]


def missing(name: str, model: Path | None, head: Path | None) -> str:
    """Why operator `name` is off, all of it at once; "" if it has both."""
    lacking = {}
    if head is None:
        lacking["head"] = f"operators.{name}.head to a folder"
    if model is None:
        lacking["encoder"] = f"operators.{name}.model to the folder of the encoder that the head was trained with"
    return f"no {' and no '.join(lacking)}: set {' and '.join(lacking.values())}" if lacking else ""
