"""Watermark agreement: annotation and the watermark detector against each other."""

import json
from collections.abc import Iterator
from typing import ClassVar

import pyarrow as pa
from pydantic import Field

from producer.operator.judgement import NOT_JUDGED, Judgement, Judgements, OptIn, batches
from producer.scratch import MEMORY, Space


class WatermarkAgreementConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 5
    # 0: only a score, since nothing says which of the two is wrong; 0.5 drops what they differ in.
    min: float = Field(default=0.0, ge=0, le=1)

    def operator(self) -> "WatermarkAgreement":
        return WatermarkAgreement(self)


class WatermarkAgreement:
    """Score: the probability, 0 to 1, that the detector (operators.watermark) gives to what annotation says: that there
    is a watermark where it lists one, and none where its list is empty. Higher means they agree. Not judged without
    annotation. Kept from `min` on.
    """

    name = "watermark_agreement"
    version = 1
    needs: tuple[str, ...] = ("tag.watermark_list", "score.watermark")

    def __init__(self, config: WatermarkAgreementConfig) -> None:
        self._least = config.min

    def judge_table(self, table: pa.Table, space: Space = MEMORY) -> Iterator[Judgements]:
        for part in batches(table):
            rows = zip(*(part[name].to_pylist() for name in self.needs), strict=True)
            yield Judgements.of([self._judge(tag, detected) for tag, detected in rows])

    def _judge(self, tag: str, detected: float | None) -> Judgement:
        if not tag or detected is None:
            return NOT_JUDGED
        score = detected if json.loads(tag) else 1 - detected
        agrees = score >= self._least
        listed = "lists a watermark" if json.loads(tag) else "lists none"
        return Judgement(score, agrees, "" if agrees else f"annotation {listed}, the detector says {detected:.2f}")
