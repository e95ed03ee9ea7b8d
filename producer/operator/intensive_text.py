"""Intensive text: pictures that are pages of text."""

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from producer.operator.judgement import NOT_JUDGED, Judgement, OptIn, Sample, Score
from producer.operator.reading import read_samples, reader_identity, require_reader
from producer.operator.text_layout import covered


class IntensiveTextConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 4
    # Pages set with 1.6 ems from line to line have 0.54 and more, photographs with text over a third of their height up
    # to 0.28, slides and posters of a few large lines up to 0.5. None is published.
    max: float = Field(default=0.5, ge=0, le=1)

    def operator(self) -> "IntensiveText":
        require_reader("operators.intensive_text")
        return IntensiveText(self.max)

    def content(self) -> dict[str, Any]:
        return reader_identity()


class IntensiveText:
    """Score: share, 0 to 1, of the picture's area that lines of text cover, as the detector frames them, about 1.1
    times an em high; read at FINE pixels of the longest side at most. Higher means denser. Kept up to `max`. The note
    says how many lines and characters there are.
    """

    name = "intensive_text"
    version = 1
    fine = True

    def __init__(self, most: float) -> None:
        self._most = most

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [self._score(*one) for one in zip(samples, read_samples(samples), strict=True)]

    def judge(self, score: Score) -> Judgement:
        if score.value is None:
            return NOT_JUDGED
        sparse = score.value <= self._most
        reason = f"text over {score.value:.2f} of the picture, above {self._most:g}: {score.note}"
        return Judgement(score.value, sparse, "" if sparse else reason)

    def _score(self, sample: Sample, lines: list[Any] | None) -> Score:
        if sample.picture is None or lines is None:
            return Score(None)
        said = f"{len(lines)} lines, {sum(len(line.text) for line in lines)} characters" if lines else ""
        return Score(covered(lines, sample.picture.width, sample.picture.height), said)
