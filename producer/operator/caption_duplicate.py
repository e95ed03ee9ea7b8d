"""Caption near-duplicates: what stands under many different pictures says nothing of any."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from producer.clusters import Age, representatives
from producer.minhash import alike
from producer.operator.judgement import CaptionCrowds, OptIn
from producer.ordering import grouped, ordered, places, signed
from producer.scratch import MEMORY, Space, numbers, pieces


class CaptionDuplicateConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 1
    of: ClassVar[Literal["sample", "captions", "tag"]] = "captions"
    # "A view of Paris" may well stand under twenty different pictures; what stands under more is a template of a shop,
    # a placeholder, a file's name. Digits do not count: "IMG 1234" is "IMG 5678".
    max: int = Field(default=20, ge=1)  # captions of a cluster that are trained on, those of the oldest samples
    similarity: float = Field(default=0.8, gt=0, le=1)  # share of equal MinHash numbers from which on two are alike

    def operator(self) -> "CaptionDuplicate":
        """The operator with these settings."""
        return CaptionDuplicate(self)


class CaptionDuplicate:
    """Score of a caption: how many captions of the set are nearly the same, itself included, from 1. Higher means more
    of a template. All splits are compared, of samples that are kept after duplicates among pictures; beyond the first
    `max` of a cluster, by the generation that first kept the sample, then by key, captions are not trained on.

    Nearly the same is what shares about `similarity` of its pieces of eight bytes, in any case and with any digits.
    """

    name = "caption_duplicate"
    version = 1

    def __init__(self, config: CaptionDuplicateConfig) -> None:
        self._max, self._similarity = config.max, config.similarity

    def crowds(self, sketches: np.ndarray, generation: np.ndarray, space: Space = MEMORY) -> CaptionCrowds:
        number = len(sketches)
        same, none = space.filled(number, np.int64, 0), space.filled(number, np.float64, np.nan)
        of = representatives(alike(sketches, self._similarity, space), Age(same, same, none), space)
        # Nothing is compared any more, and the room of what was is used again.
        size, score = same, none
        for part in pieces(number):
            np.add.at(size, of[part], 1)
        kept = space.empty(number, np.bool_)
        for part in pieces(number):
            score[part] = size[of[part]]
        rows = ordered(number, of.__getitem__, lambda part: signed(generation[part]), space=space)
        for part, first in grouped(rows, 1):
            kept[places(rows, part)] = numbers(part) - first < self._max
        return CaptionCrowds(score, kept)

    def reason(self, score: float) -> str:
        return f"one of {score:.0f} captions that are nearly the same, above {self._max}"
