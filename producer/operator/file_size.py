"""File size: images encoded in suspiciously few bytes."""

from collections.abc import Sequence

from pydantic import BaseModel, Field

from producer.operator.judgement import NOT_JUDGED, Judgement, Sample, Score


class FileSizeConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    # A JPEG of 256x256 holds 600 bytes of headers and tables; a photograph at quality 30 needs 5,000 bytes and more,
    # rendered text 3,000. Below this are single colours and place-holders.
    min: int = Field(default=2048, ge=0)  # bytes


class FileSize:
    """Score: bytes of the encoded image, from 0. Higher means more detail or less compression. Kept from `min` on."""

    name = "file_size"
    version = 1

    def __init__(self, config: FileSizeConfig) -> None:
        self._min = config.min

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [Score(float(sample.raw.size) if sample.raw.member else None) for sample in samples]

    def judge(self, score: Score) -> Judgement:
        if score.value is None:
            return NOT_JUDGED
        large = score.value >= self._min
        return Judgement(score.value, large, "" if large else f"{score.value:.0f} bytes, below {self._min}")
