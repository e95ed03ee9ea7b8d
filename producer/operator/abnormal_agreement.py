"""Abnormal agreement: what annotation says of things that disturb the view, against the operators that seek them."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import pyarrow as pa
from pydantic import Field, field_validator

from producer.operator.judgement import NOT_JUDGED, Judgement, Judgements, OptIn, batches
from producer.scratch import MEMORY, Space


class AbnormalAgreementConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 5
    # Operators whose high score means an abnormal element, each with the score at which it is as likely as not: that
    # of mosaic is its own threshold, and a code that can be read is one whatever its size.
    against: dict[str, float] = Field(default_factory=lambda: {"mosaic": 0.55, "code": 0.005}, min_length=1)
    # 0: only a score, since nothing says which of the two is wrong; 0.5 drops what they differ in.
    min: float = Field(default=0.0, ge=0, le=1)

    @field_validator("against")
    @classmethod
    def _bounds(cls, against: dict[str, float]) -> dict[str, float]:
        if wrong := [name for name, bound in against.items() if bound <= 0]:
            raise ValueError(f"the bounds of {wrong} must be above 0")
        return against

    def operator(self) -> "AbnormalAgreement":
        return AbnormalAgreement(self)


class AbnormalAgreement:
    """Score: how well "yes" or "no" to an abnormal element fits what the operators of `against` find, 0 to 1. Their
    evidence is the highest score as a share of twice its bound, 1 at most; the score is the evidence where annotation
    says yes, and what is missing to 1 where it says no. Higher means they agree. Not judged without annotation. Kept
    from `min` on.
    """

    name = "abnormal_agreement"
    version = 1

    def __init__(self, config: AbnormalAgreementConfig) -> None:
        self._bounds, self._least = config.against, config.min
        self.needs = ("tag.abnormal_element", *(f"score.{name}" for name in config.against))

    def judge_table(self, table: pa.Table, space: Space = MEMORY) -> Iterator[Judgements]:
        for part in batches(table):
            rows = zip(*(part[name].to_pylist() for name in self.needs), strict=True)
            yield Judgements.of([self._judge(tag, scores) for tag, *scores in rows])

    def _judge(self, tag: str, scores: Sequence[float | None]) -> Judgement:
        found = [
            min(1.0, max(0.0, score / (2 * bound)))
            for score, bound in zip(scores, self._bounds.values(), strict=True)
            if score is not None
        ]
        if not tag or not found:
            return NOT_JUDGED
        score = max(found) if tag == "yes" else 1 - max(found)
        agrees = score >= self._least
        return Judgement(score, agrees, "" if agrees else f"annotation says {tag}, evidence is {max(found):.2f}")
