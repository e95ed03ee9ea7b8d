"""Watermark: pictures with another's mark over them, by a head on the shared embedding; none without its path."""

import math
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from producer.operator.headed import Headed, missing
from producer.operator.judgement import NOT_JUDGED, Judgement, OptIn, Score
from producer.operator.pretrained import content_hash


class WatermarkConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 5
    runs_model = True
    model: Path | None = None  # the folder of the encoder that the head was trained with; that of siglip is shared
    head: Path | None = None  # a folder with a head, see producer/operator/head.py; without both the operator is off
    # Probability. The report publishes no threshold; even odds, as in the sets that Stable Diffusion 1 was trained on.
    max: float = Field(default=0.5, ge=0, le=1)

    def operator(self) -> "Watermark":
        assert self.model and self.head
        return Watermark(self.model, self.head, self.max)

    def off_reason(self) -> str:
        return missing("watermark", self.model, self.head)

    def content(self) -> dict[str, Any]:
        return {"model": content_hash(self.model), "head": content_hash(self.head)} if self.model and self.head else {}


class Watermark(Headed):
    """Score: the probability of a watermark, 0 to 1, the sigmoid of the head's number. Higher means surer. The picture
    is seen as the encoder's processor prepares it, from SIDE pixels of the longest side at most, so that small marks
    in a corner may be missed. Kept up to `max`.
    """

    name = "watermark"

    def __init__(self, model: Path, head: Path, most: float) -> None:
        super().__init__(model, head)
        self._most = most

    def read(self, number: float) -> float:
        return 1 / (1 + math.exp(-number)) if number > -700 else 0.0

    def judge(self, score: Score) -> Judgement:
        if score.value is None:
            return NOT_JUDGED
        clean = score.value <= self._most
        return Judgement(score.value, clean, "" if clean else f"{score.value:.2f}, above {self._most:g}")
