"""Where annotations are kept: answers cost money or hours, so what was answered once is data.

    <out>/caption-<fingerprint>/annotator.json   who was asked what; its number counts the annotators of this folder
    <out>/caption-<fingerprint>/<shard>.parquet  an entry a sample, sorted by key, written aside and renamed
    <out>/caption-<fingerprint>/<shard>.jsonl    the record of a shard that is not finished (record.py)
    <out>/fused-<fingerprint>/...                the same of the second question

A fingerprint is a hash of model, question and decoding. Another question makes another folder and leaves this one as it
is. A shard's files are named by source and shard, not by when it was changed: what an entry is of, its subject says.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from producer.annotate.config import AnnotateError
from producer.annotate.entry import SCHEMA, Entry, from_json, to_json
from producer.annotate.record import Record, read
from producer.disk import sync

# Counts up with every change of what a file of annotations holds.
VERSION = 1

CAPTION, FUSED = "caption", "fused"


@dataclass(frozen=True)
class Annotation:
    """What annotators say of one sample."""

    caption: str  # of split recaption
    language: str
    image_type: str
    image_style: str
    watermark: tuple[str, ...]
    abnormal: bool
    fused: Mapping[str, str]  # captions of split fused, by what they were fused from (entry.fused_from)

    def tags(self) -> tuple[str, str, str, str]:
        """Type, style, watermarks as a JSON list, and yes or no to an abnormal element: the order of join.TAGS."""
        marks = json.dumps(self.watermark, ensure_ascii=False)
        return self.image_type, self.image_style, marks, "yes" if self.abnormal else "no"


class Shelf:
    """The annotations of one annotator. Many may read; one process at a time writes, under the caller's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[Path, Record] = {}

    def read(self, source: str, shard: str) -> dict[str, Entry]:
        """The entries of a shard by subject, recorded ones among them; of two of one the later."""
        path = self._path(source, shard)
        return {entry.subject: entry for entry in (*_read_file(path), *read(path.with_suffix(".jsonl")))}

    def record(self, source: str, shard: str, batches: Sequence[Sequence[Entry]]) -> None:
        """Keep more entries; on return they survive a power cut."""
        path = self._path(source, shard).with_suffix(".jsonl")
        self._open.setdefault(path, Record(path)).append(batches)

    def finish(self, source: str, shard: str) -> None:
        """Lay the record of a shard into its file, if there is one."""
        path = self._path(source, shard)
        record = path.with_suffix(".jsonl")
        if not record.exists():
            return
        _write_file(path, sorted(self.read(source, shard).values(), key=lambda entry: (entry.key, entry.subject)))
        if held := self._open.pop(record, None):
            held.close()
        # Killed before this, the next run finds in the record what the file has too.
        record.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of records that are open."""
        for record in self._open.values():
            record.close()
        self._open.clear()

    def _path(self, source: str, shard: str) -> Path:
        digest = hashlib.sha256(json.dumps([source, shard]).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.parquet"


def open_shelf(out: Path, kind: str, identity: dict[str, Any]) -> Shelf:
    """The shelf in `out` for what `identity` answers to the question `kind`, made if it is not there."""
    said = {"version": VERSION, "kind": kind, **identity}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    folder = out / f"{kind}-{digest[:16]}"
    if not (folder / "annotator.json").is_file():
        number = 1 + max((shelf.number for shelf in _shelves(out)), default=0)
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".annotator.{uuid4().hex}"
        aside.write_text(json.dumps({"number": number, **said}, indent=2, ensure_ascii=False) + "\n")
        os.replace(aside, folder / "annotator.json")
    for orphan in folder.glob("*.parquet.*"):
        orphan.unlink(missing_ok=True)
    return Shelf(folder)


def read_annotations(folder: Path, source: str, shard: str) -> dict[str, Annotation]:
    """What is known of the pictures of a shard, by their sha256, from all annotators below `folder`, or the one that it
    belongs to; pictures without findings are not in it.

    Where several speak of a picture, the one that was begun last counts. Records of unfinished shards count too.
    """
    captions: dict[str, Entry] = {}
    fused: dict[str, str] = {}
    for one in _shelves(folder):
        found = Shelf(one.folder).read(source, shard)
        said = {subject: entry for subject, entry in found.items() if not entry.reason}
        if one.kind == CAPTION:
            captions |= said
        else:
            fused |= {subject: entry.caption for subject, entry in said.items()}
    return {subject: _annotation(entry, fused) for subject, entry in captions.items()}


def require(folder: Path) -> None:
    """AnnotateError unless there are annotations in `folder`."""
    if not _shelves(folder):
        raise AnnotateError(f"{folder}: holds no annotations; run launch/annotate.py, or name its annotate.out")


def _annotation(entry: Entry, fused: Mapping[str, str]) -> Annotation:
    return Annotation(
        caption=entry.caption,
        language=entry.language,
        image_type=entry.image_type,
        image_style=entry.image_style,
        watermark=entry.watermark,
        abnormal=entry.abnormal == "yes",
        fused=fused,
    )


class _Known(NamedTuple):
    number: int
    kind: str
    folder: Path


def _shelves(folder: Path) -> list[_Known]:
    """The shelves below `folder`, or itself, in the order in which they were begun."""
    return sorted(_known(path) for path in (*folder.glob("annotator.json"), *folder.glob("*/annotator.json")))


def _known(path: Path) -> _Known:
    try:
        said = json.loads(path.read_text("utf-8"))
        version, number, kind = said["version"], said["number"], said["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AnnotateError(f"{path}: cannot be read ({error}); restore it from a copy") from None
    if version != VERSION or kind not in (CAPTION, FUSED) or type(number) is not int:
        raise AnnotateError(f"{path}: version {version} of {kind}, this release reads {VERSION}")
    return _Known(number, kind, path.parent)


def _read_file(path: Path) -> list[Entry]:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except FileNotFoundError:
        return []
    except (OSError, pa.ArrowException) as error:
        raise AnnotateError(
            f"{path}: damaged ({error}); restore it from a copy, or delete it to have its shard asked again"
        ) from None
    if not table.schema.equals(SCHEMA):
        raise AnnotateError(f"{path}: columns {table.schema.names}, expected {SCHEMA.names}")
    return [from_json(row) for row in table.to_pylist()]


def _write_file(path: Path, entries: Sequence[Entry]) -> None:
    aside = path.with_name(f"{path.name}.{uuid4().hex}")
    table = pa.Table.from_pylist([to_json(entry) for entry in entries], schema=SCHEMA)
    try:
        pq.write_table(table, aside, compression="zstd", write_page_checksum=True)
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    except OSError as error:
        raise AnnotateError(f"{path}: {error.strerror or error}; make room and run it again") from None
    finally:
        aside.unlink(missing_ok=True)
