"""Quoted text: captions of annotation that quote what nobody reads in the picture."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from producer.operator.judgement import NOT_JUDGED, Judgement, Judgements, OptIn, batches
from producer.operator.quotation import agreement, quotations, read_lines
from producer.scratch import MEMORY, Space

# The splits that a model wrote while it saw the picture.
_SPLITS = frozenset({"recaption", "fused"})


class QuotedTextConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 5
    # OCR misreads a tenth of small or curved text, and a right caption may leave out what it reads: half of what a
    # caption quotes is there unless the caption invents. No published set calibrates it.
    min: float = Field(default=0.5, ge=0, le=1)

    def operator(self) -> "QuotedText":
        return QuotedText(self)


class QuotedText:
    """Score: the share, 0 to 1, of the letters and digits that a sample's recaption and fused caption quote which OCR
    reads too, each quotation as a whole somewhere in what is read, at the size that OCR sees (operators.text). Higher
    means more of it is there. Not judged where they quote nothing. Kept from `min` on.
    """

    name = "quoted_text"
    version = 1
    needs: tuple[str, ...] = ("captions", "tag.text")

    def __init__(self, config: QuotedTextConfig) -> None:
        self._least = config.min

    def judge_table(self, table: pa.Table, space: Space = MEMORY) -> Iterator[Judgements]:
        for part in batches(table):
            rows = zip(*(part[name].to_pylist() for name in self.needs), strict=True)
            yield Judgements.of([self._judge(captions, tag) for captions, tag in rows])

    def _judge(self, captions: Sequence[dict[str, Any]], tag: str) -> Judgement:
        there = read_lines(tag)
        texts = [one["text"] for one in captions if one["split"] in _SPLITS and one["kept"]]
        quoted = [quotation for text in texts for quotation in quotations(text)]
        if there is None or not quoted:
            return NOT_JUDGED
        score = agreement(quoted, there)
        there_too = score >= self._least
        return Judgement(
            score, there_too, "" if there_too else f"{score:.2f} of what captions quote, below {self._least:g}"
        )
