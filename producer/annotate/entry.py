"""What is kept of one question: the answer's findings, or why there are none. No answer at all is no entry."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

RAW = 16 << 10  # characters of the last answer that are kept

# Columns of a file of annotations: an entry a row.
SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # the sample's, in the index
        ("subject", pa.string()),  # what was asked about: the image's sha256, or a hash of the captions fused
        ("reason", pa.string()),  # why there are no findings, in a word or two; "" where there are
        ("detail", pa.string()),
        ("language", pa.string()),  # en or zh, of the question
        ("caption", pa.string()),
        ("image_type", pa.string()),
        ("image_style", pa.string()),
        ("watermark", pa.list_(pa.string())),
        ("abnormal", pa.string()),  # yes or no
        ("raw", pa.string()),  # the last answer as it came, cut at RAW characters
        ("calls", pa.int32()),  # questions asked for it
        ("prompt_tokens", pa.int64()),  # of all of them
        ("answer_tokens", pa.int64()),
    ]
)


class EntryError(ValueError):
    """What was read is no entry."""


@dataclass(frozen=True)
class Entry:
    """See SCHEMA."""

    key: str
    subject: str
    reason: str = ""
    detail: str = ""
    language: str = "en"
    caption: str = ""
    image_type: str = ""
    image_style: str = ""
    watermark: tuple[str, ...] = ()
    abnormal: str = ""
    raw: str = ""
    calls: int = 1
    prompt_tokens: int = 0
    answer_tokens: int = 0


@dataclass(frozen=True)
class Failure:
    """A sample that got no answer, for no reason that lies in its answer: it is asked about again in the next run."""

    key: str
    reason: str
    detail: str


def to_json(entry: Entry) -> dict[str, Any]:
    """`entry` as JSON values."""
    return {**vars(entry), "watermark": list(entry.watermark)}


def from_json(said: Any) -> Entry:
    """The entry in JSON values; EntryError if it is none."""
    if not isinstance(said, dict) or said.keys() != _KINDS.keys():
        raise EntryError("an entry has other fields")
    wrong = [name for name, kind in _KINDS.items() if type(said[name]) is not kind]
    if wrong or any(type(text) is not str for text in said["watermark"]):
        raise EntryError(f"an entry has wrong values in {wrong or 'watermark'}")
    return Entry(**(said | {"watermark": tuple(said["watermark"])}))


_KINDS = {field.name: {pa.string(): str, pa.list_(pa.string()): list}.get(field.type, int) for field in SCHEMA}


def fused_from(found: str, seen: str) -> str:
    """The subject of a fused caption: the caption found beside the image, and the one written for it."""
    return hashlib.sha256(json.dumps([found, seen]).encode()).hexdigest()
