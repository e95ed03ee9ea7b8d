"""Text: what is written in the picture, for whoever writes captions or checks them."""

import json
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from producer.operator.judgement import OptIn, Sample
from producer.operator.reading import Line, read_samples, reader_identity, require_reader


class TextConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 4
    of: ClassVar[Literal["tag"]] = "tag"

    def operator(self) -> "Text":
        require_reader("operators.text")
        return Text()

    def content(self) -> dict[str, Any]:
        return reader_identity()


class Text:
    """Tag: the lines that were read, from top to bottom, as a JSON list of {"text", "box", "score"}; `box` is left,
    top, right and bottom as shares of the picture's width and height, `score` the recogniser's mean probability. ""
    without any. Lines in scripts that the recogniser does not know are not among them.
    """

    name = "text"
    version = 1
    fine = True

    def tag(self, samples: Sequence[Sample]) -> list[str]:
        return [_said(lines or []) for lines in read_samples(samples)]


def _said(lines: Sequence[Line]) -> str:
    entries = [_entry(line) for line in lines if line.text]
    return json.dumps(entries, ensure_ascii=False, separators=(",", ":")) if entries else ""


def _entry(line: Line) -> dict[str, Any]:
    across, down = zip(*line.corners, strict=True)
    # Four digits are a fifth of a pixel of a picture of 2000.
    box = [round(side, 4) for side in (min(across), min(down), max(across), max(down))]
    return {"text": line.text, "box": box, "score": round(line.score, 3)}
