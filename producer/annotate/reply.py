"""Answers to findings: the JSON in them, repaired within bounds, checked against the report's keys.

Nothing that a model says is trusted: sizes are bounded, control characters refused, and what cannot be used is a
ReplyError with its reason.
"""

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from producer.annotate.model import Said
from producer.source.caption import MAX_BYTES, checked

# Characters of an answer that are looked at; the longest caption and as much beside it.
LIMIT = 2 * MAX_BYTES
LEAD = 16 << 10  # characters of free text ahead of the JSON
_STARTS = 32  # braces at which the JSON may begin
_LINE = 200  # characters of a type, a style or a watermark
_WATERMARKS = 32
_DETAIL = 300  # characters of what is wrong, which is kept and said to the model

T = TypeVar("T", bound=BaseModel)


class ReplyError(ValueError):
    """An answer cannot be used. `reason` is one of a few words to count by; `again` says whether to ask again."""

    def __init__(self, reason: str, detail: str, *, again: bool = True) -> None:
        super().__init__(detail[:_DETAIL])
        self.reason, self.again = reason, again


def _caption(text: str) -> str:
    found = checked("caption", text)
    if not found.texts:
        raise ValueError(found.faults[0])
    return found.texts["caption"]


def _line(text: str) -> str:
    return " ".join(_caption(text).split())


_Line = Annotated[str, Field(max_length=_LINE), AfterValidator(_line)]
_YesNo = Annotated[
    Literal["yes", "no"], BeforeValidator(lambda said: said.strip().lower() if isinstance(said, str) else said)
]


class Findings(BaseModel, frozen=True, strict=True):
    """What one pass finds, under the report's keys; others beside them are passed over."""

    caption: Annotated[str, AfterValidator(_caption)] = Field(alias="Caption")
    image_type: _Line = Field(alias="Image Type")
    image_style: _Line = Field(alias="Image Style")
    watermark: list[_Line] = Field(alias="Watermark List", max_length=_WATERMARKS)
    abnormal: _YesNo = Field(alias="Abnormal Element")


class Fused(BaseModel, frozen=True, strict=True):
    """The answer to the second question."""

    caption: Annotated[str, AfterValidator(_caption)] = Field(alias="Fused Caption")


def read(said: Said, kind: type[T]) -> T:
    """The `kind` in an answer; ReplyError says why there is none."""
    if said.finish == "filter":
        raise ReplyError("filtered", "the server's content filter ended the answer", again=False)
    # Where reasoning is not kept apart it stands in front, ended by its tag.
    text, thinks = said.text[:LIMIT], "<think>" in said.text
    answer = text.rpartition("</think>")[2]
    if said.finish == "length" and (not answer.strip() or (thinks and "</think>" not in text)):
        tokens = f"{said.answer_tokens} tokens" if said.answer_tokens else "all tokens"
        if said.thought or thinks:
            raise ReplyError("reasoning", f"{tokens} went into reasoning; raise annotate.max_tokens", again=False)
    if not answer.strip():
        raise ReplyError("empty", "the answer is empty")
    (wanted, *_) = (field.alias or name for name, field in kind.model_fields.items())
    found = _find(answer, wanted)
    if found is None and said.finish == "length":
        raise ReplyError("cut", "annotate.max_tokens ended the answer before its JSON did; raise it", again=False)
    if found is None:
        raise ReplyError("no json", f"it holds no JSON object with the key {wanted!r}" + _why(answer))
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise ReplyError("schema", "; ".join(_said(item) for item in error.errors()[:4])) from None


def _find(text: str, key: str) -> dict[str, Any] | None:
    """The last JSON object in `text` that has `key`: earlier ones may repeat the question's example."""
    found, end = None, 0
    for start in _starts(text):
        if start < end:
            continue
        value, length = _decode(text[start:])
        if value is None and (mended := _without_commas(text[start:])) != text[start:]:
            value, length = _decode(mended)
        if isinstance(value, dict) and key in value:
            found, end = value, start + length
    return found


def _starts(text: str) -> Iterator[int]:
    for number, brace in enumerate(re.finditer(r"\{", text)):
        if number == _STARTS or brace.start() > LEAD:
            return
        yield brace.start()


# Line breaks inside of strings are taken as they are: models write them, and captions may hold them.
_DECODER = json.JSONDecoder(strict=False)


def _decode(text: str) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None, 0


# A string as a whole, its end missing where the answer's is, or a comma with nothing behind it.
_COMMA = re.compile(r'("(?:[^"\\]|\\.)*(?:"|\Z|\\\Z))|,(?=\s{0,64}[}\]])', re.DOTALL)


def _without_commas(text: str) -> str:
    return _COMMA.sub(lambda match: match[1] or "", text)


def _why(text: str) -> str:
    """What a decoder says of the first brace, for whoever is asked again."""
    first = text.find("{")
    if first < 0:
        return ""
    if first > LEAD:
        return f" within its first {LEAD} characters"
    try:
        _DECODER.raw_decode(text[first:])
    except json.JSONDecodeError as error:
        return f" ({error.msg} at character {error.pos})"
    except RecursionError:
        return " (nested too deeply)"
    return ""


def _said(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    return f"{path}: {item['msg'].removeprefix('Value error, ')}"
