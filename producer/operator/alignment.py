"""What the operators have in common that ask an encoder whether a caption belongs to its picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from producer.operator.encoder import Encoder
from producer.operator.judgement import NOT_JUDGED, Judgement, Sample, Score


class Alignment:
    """A caption operator but for its `name` and the `kinds` of models it takes.

    Score: the cosine between the embeddings of picture and caption, -1 to 1. Kept from `least` on. Captions of other
    splits and of pictures that do not decode are not judged.
    """

    name: str
    kinds: tuple[str, ...]
    version = 1

    def __init__(self, folder: Path, splits: tuple[str, ...], least: float) -> None:
        """`splits` are those that are judged; none: all."""
        self._encoder = Encoder(f"operators.{self.name}.model", folder, self.kinds, words=True)
        self._splits, self._least = splits, least

    def score_captions(self, samples: Sequence[Sample]) -> list[list[Score]]:
        pictures = self._encoder.embed(samples)
        asked = [
            (picture, one.raw.captions[split])
            for one, picture in zip(samples, pictures, strict=True)
            for split in sorted(one.raw.captions)
            if picture is not None and self._judges(split)
        ]
        cosines: list[float] = []
        if asked:
            texts = self._encoder.texts([text for _, text in asked])
            rows = np.stack([picture for picture, _ in asked])
            cosines = np.einsum("nd,nd->n", rows, texts, dtype=np.float64).clip(-1, 1).tolist()
        left = iter(cosines)
        return [
            [Score(next(left) if known and self._judges(split) else None) for split in sorted(one.raw.captions)]
            for one, known in zip(samples, (picture is not None for picture in pictures), strict=True)
        ]

    def judge(self, score: Score) -> Judgement:
        if score.value is None:
            return NOT_JUDGED
        fits = score.value >= self._least
        return Judgement(score.value, fits, "" if fits else f"{score.value:.3f}, below {self._least:g}")

    def _judges(self, split: str) -> bool:
        return not self._splits or split in self._splits
