"""Invalid caption: captions that do not describe: refusals, loops, markup, addresses, file names, damage, nothing."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from producer.operator.judgement import NOT_JUDGED, Judgement, OptIn, Score
from producer.operator.markup import address, damage, file_name, markup, says_nothing
from producer.operator.refusal import plain, refusal
from producer.operator.repetition import repetition

# Characters that are looked at: a caption of the 1,024 tokens that are used has less.
_READ = 20_000
_SHOWN = 40


class InvalidCaptionConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 3
    of = "captions"
    # Kinds of defect; one is enough: each is sought so that hardly a good caption shows it (tests/unit/producer).
    max: int = Field(default=0, ge=0)

    def operator(self) -> "InvalidCaption":
        return InvalidCaption(self)


class InvalidCaption:
    """Score: how many of the kinds of defect in DEFECTS a caption has, from 0 to 7. Higher means less of a caption.
    They are sought in its first 20,000 characters; refusals and markup not in what it quotes, since a picture may show
    them. Kept up to `max`.
    """

    name = "invalid_caption"
    version = 1

    def __init__(self, config: InvalidCaptionConfig) -> None:
        self._most = config.max

    def score_texts(self, splits: Sequence[str], texts: Sequence[str], tokens: Sequence[int]) -> list[Score]:
        return [_score(text[:_READ]) for text in texts]

    def judge(self, score: Score) -> Judgement:
        if score.value is None:
            return NOT_JUDGED
        valid = score.value <= self._most
        return Judgement(score.value, valid, "" if valid else score.note)


DEFECTS = {
    "refusal": lambda text: refusal(plain(text)),
    "repetition": repetition,
    "markup": markup,
    "address": address,
    "file name": file_name,
    "damaged": damage,
    "empty": says_nothing,
}


def _score(text: str) -> Score:
    found = [f"{kind}: {what[:_SHOWN]}" for kind, seek in DEFECTS.items() if (what := seek(text))]
    return Score(float(len(found)), "; ".join(found))
