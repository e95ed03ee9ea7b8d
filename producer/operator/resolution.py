"""Resolution: pictures too small for the smallest training size."""

import math
from collections.abc import Sequence

from pydantic import BaseModel, Field

from producer.operator.judgement import NOT_JUDGED, Judgement, Sample, Score


class ResolutionConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    # "original < 256p removed" (arXiv 2508.02324, stage S1); 256p is 256 x 256 pixels in any aspect ratio.
    min: float = Field(default=256.0, ge=1)  # pixels


class Resolution:
    """Score: geometric mean of the upright picture's own sides, in pixels, from 1. Higher means larger. Kept from `min`
    on. Both sides count, so that a 200 x 400 picture can fill a tall bucket of 256p.
    """

    name = "resolution"
    version = 1

    def __init__(self, config: ResolutionConfig) -> None:
        self._min = config.min

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        seen = [sample.picture for sample in samples]
        return [Score(None if one is None else math.sqrt(one.width * one.height)) for one in seen]

    def judge(self, score: Score) -> Judgement:
        if score.value is None:
            return NOT_JUDGED
        large = score.value >= self._min
        return Judgement(score.value, large, "" if large else f"{score.value:.1f}p, below {self._min:g}p")
