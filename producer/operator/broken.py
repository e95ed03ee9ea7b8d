"""Broken files: what does not decode to a whole picture within the limits."""

from collections.abc import Sequence

from pydantic import BaseModel, Field

from producer.operator.judgement import Judgement, Sample, Score
from producer.picture import Limits


class BrokenConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    max_bytes: int = Field(default=Limits().bytes, ge=1)  # of the encoded file
    max_pixels: int = Field(default=Limits().pixels, ge=1)  # width times height, checked before decoding


class Broken:
    """Score: 1 if the file decodes to its last pixel within the limits on bytes and pixels, 0 if not. No unit.

    Kept at 1. Truncated files are broken even where a viewer would show them: half a JPEG decodes to grey.
    """

    name = "broken"
    version = 1

    def __init__(self, config: BrokenConfig) -> None:
        self.limits = Limits(config.max_bytes, config.max_pixels)

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [Score(0.0, sample.fault) if sample.picture is None else Score(1.0) for sample in samples]

    def judge(self, score: Score) -> Judgement:
        return Judgement(score.value, score.value == 1.0, score.note)
