"""Token length: captions too long for the model to read."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from producer.operator.judgement import NOT_JUDGED, Judgement, OptIn, Score


class TokenLengthConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 3
    of = "captions"
    # Tokens. The model reads 1,024 at most (diffusers' pipelines), 5 of them the end of the prompt's template; the
    # encoder rejects what is longer. The report publishes no number.
    max: int = Field(default=1019, ge=1)

    def operator(self) -> "TokenLength":
        return TokenLength(self)


class TokenLength:
    """Score: how many tokens a caption has by the tokenizer that will encode it, without template or special tokens,
    from 0. Higher means longer. Kept up to `max`.
    """

    name = "token_length"
    version = 1

    def __init__(self, config: TokenLengthConfig) -> None:
        self._most = config.max

    def score_texts(self, splits: Sequence[str], texts: Sequence[str], tokens: Sequence[int]) -> list[Score]:
        return [Score(float(number)) for number in tokens]

    def judge(self, score: Score) -> Judgement:
        if score.value is None:
            return NOT_JUDGED
        fits = score.value <= self._most
        return Judgement(score.value, fits, "" if fits else f"{score.value:.0f} tokens, above {self._most}")
