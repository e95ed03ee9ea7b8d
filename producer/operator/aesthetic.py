"""Aesthetic: pictures that people do not find beautiful, by a head on the shared embedding; none without its path."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from producer.operator.headed import Headed, missing
from producer.operator.judgement import NOT_JUDGED, Judgement, OptIn, Score
from producer.operator.pretrained import content_hash


class AestheticConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 5
    runs_model = True
    model: Path | None = None  # the folder of the encoder that the head was trained with; that of siglip is shared
    head: Path | None = None  # a folder with a head, see producer/operator/head.py; without both the operator is off
    # Rating. The report publishes no threshold; with LAION's predictor this one keeps half of English LAION-5B, which
    # Stable Diffusion 2 was trained on (LAION-Aesthetics V2 4.5+).
    min: float = Field(default=4.5)

    def operator(self) -> "Aesthetic":
        assert self.model and self.head
        return Aesthetic(self.model, self.head, self.min)

    def off_reason(self) -> str:
        return missing("aesthetic", self.model, self.head)

    def content(self) -> dict[str, Any]:
        return {"model": content_hash(self.model), "head": content_hash(self.head)} if self.model and self.head else {}


class Aesthetic(Headed):
    """Score: the rating that the head expects people to give, 1 to 10 with heads in the units of LAION's predictor and
    AVA; what the head says is not cut to that range. Higher means more beautiful. The picture is seen as the encoder's
    processor prepares it, from SIDE pixels of the longest side at most. Kept from `min` on.
    """

    name = "aesthetic"

    def __init__(self, model: Path, head: Path, least: float) -> None:
        super().__init__(model, head)
        self._least = least

    def judge(self, score: Score) -> Judgement:
        if score.value is None:
            return NOT_JUDGED
        fine = score.value >= self._least
        return Judgement(score.value, fine, "" if fine else f"{score.value:.2f}, below {self._least:g}")
