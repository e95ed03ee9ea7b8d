"""The index: what is known of every sample seen, as immutable generations of one parquet file each.

    <index>/gen-00001/rows.parquet       a row a sample, kept or not, sorted by key
    <index>/gen-00001/generation.json    its id, the hash of rows.parquet, the tokenizer, the operators

A generation appears by one rename, is never changed afterwards, and its hash is checked on every open.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from producer.digest import hash_file
from producer.disk import sync
from producer.lock import exclusive

VERSION = 3
# Rows written at a time: about 16 MB of them are in memory.
ROW_GROUP = 1 << 14

CAPTION = pa.struct(
    [
        ("split", pa.string()),
        ("text", pa.string()),
        ("tokens", pa.int32()),  # of the caption alone, without template or special tokens
        ("kept", pa.bool_()),  # whether it may be trained on
        ("reason", pa.string()),  # why not, the operator's name first; "" if it may
    ]
)
REFERENCE = pa.struct(
    [
        ("member", pa.string()),  # the picture's name inside the sample's shard
        ("offset", pa.int64()),
        ("size", pa.int64()),  # bytes
        ("width", pa.int32()),  # pixels after EXIF orientation
        ("height", pa.int32()),
        ("sha256", pa.string()),
    ]
)

_FACTS = [
    ("key", pa.string()),  # unique: "<shard stem>/<member stem>"
    ("source", pa.string()),  # the configured source's name
    ("shard", pa.string()),  # relative to the source's root
    ("member", pa.string()),  # the image's name inside the shard
    ("offset", pa.int64()),  # of the image's bytes inside the shard; 0 in a folder
    ("size", pa.int64()),  # bytes of the image
    ("width", pa.int32()),  # pixels after EXIF orientation; 0 if unreadable
    ("height", pa.int32()),
    ("sha256", pa.string()),  # of the image's bytes
    ("phash", pa.uint64()),  # perceptual hash; 0 if unreadable
    ("captions", pa.list_(CAPTION)),  # by split
    ("references", pa.list_(REFERENCE)),  # pictures that an edit starts from; none for text to image
    ("cluster", pa.string()),  # key of the duplicate cluster's representative; its own when alone
]
_DECISION = [
    ("kept", pa.bool_()),
    ("dropped_by", pa.string()),  # the first operator that said no; "" if kept
    ("reason", pa.string()),
]

_NAME = re.compile(r"gen-(\d{5,})")
_LOCK_TIMEOUT_S = 60.0


class IndexFormatError(ValueError):
    """An index, or one generation of it, is missing, damaged or of another version."""


def schema(operators: Mapping[str, Any] | Sequence[str]) -> pa.Schema:
    """The columns of a generation judged by `operators`; score and verdict are null where not judged.

    What is said of an operator under "of" decides its columns: "captions" has a score for each caption of a row, "tag"
    has one string, tag.NAME, and neither score nor verdict. Anything else has one score.
    """
    said = operators if isinstance(operators, Mapping) else {name: {} for name in operators}
    judged: list[tuple[str, pa.DataType]] = []
    for name, about in said.items():
        kind = about.get("of") if isinstance(about, Mapping) else None
        if kind == "tag":
            judged.append((f"tag.{name}", pa.string()))
            continue
        score = pa.list_(pa.float64()) if kind == "captions" else pa.float64()
        judged += [(f"score.{name}", score), (f"verdict.{name}", pa.bool_()), (f"reason.{name}", pa.string())]
    return pa.schema([*_FACTS, *judged, *_DECISION])


@dataclass(frozen=True, eq=False)
class Index:
    """One generation, opened and verified."""

    path: Path
    id: str
    table: pa.Table
    tokenizer: str
    operators: dict[str, Any]

    @classmethod
    def open(cls, path: Path, generation: str = "latest") -> "Index":
        """The generation called `generation` (a folder's name) of the index at `path`, its hash checked."""
        folder, said = described(path, generation)
        table = pq.read_table(folder / "rows.parquet", memory_map=True)
        expected = schema(said["operators"])
        if not table.schema.equals(expected) or table.num_rows != said["rows"]:
            raise IndexFormatError(
                f"{folder}: {table.num_rows} rows of {table.schema.names}, "
                f"expected {said['rows']} of {expected.names}; curate again with this release"
            )
        return cls(folder, said["id"], table, said["tokenizer"], said["operators"])


def described(path: Path, generation: str = "latest") -> tuple[Path, dict[str, Any]]:
    """The folder of the generation called `generation` and its generation.json; its rows are verified, and not read."""
    folder = _latest(path) if generation == "latest" else path / generation
    if folder is None:
        raise IndexFormatError(f"{path}: holds no generation; run launch/curate.py first")
    return folder, _verified(folder)


def write_generation(path: Path, table: pa.Table, *, tokenizer: str, operators: dict[str, Any]) -> str:
    """Publish `table` as the next generation of the index at `path` and return its id; see `new_generation`."""
    with new_generation(path, tokenizer=tokenizer, operators=operators) as writer:
        writer.write(table)
    return writer.id


@contextmanager
def new_generation(path: Path, *, tokenizer: str, operators: dict[str, Any]) -> Iterator["Writer"]:
    """Publish what the block writes as the next generation of the index at `path`; nothing if the block fails.

    `tokenizer` is the fingerprint behind the token lengths; `operators` says of each operator what made its verdicts
    (JSON values). Where the latest generation already is this one, nothing is written.
    """
    with exclusive(path / ".lock", timeout_s=_LOCK_TIMEOUT_S):
        # Under the lock, whatever is still aside was left by a writer that died.
        for orphan in path.glob(".writing-*"):
            shutil.rmtree(orphan)
        aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=path))
        try:
            writer = Writer(path, aside, schema(operators))
            try:
                yield writer
            finally:
                writer.close()
            writer.id = _publish(path, aside, writer.rows, tokenizer, operators)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


class Writer:
    """The rows of a new generation, in the order of their keys, written as they come."""

    id: str  # of the generation, once it is published

    def __init__(self, path: Path, aside: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._file = pq.ParquetWriter(aside / "rows.parquet", schema, compression="zstd", write_page_checksum=True)
        self._last: str | None = None
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        """Append `table`, in row groups of ROW_GROUP; all but the last call with a multiple of it."""
        if not table.schema.equals(self._schema):
            raise IndexFormatError(f"{self._path}: columns {table.schema.names} differ from {self._schema.names}")
        self._check_keys(table["key"])
        self._file.write_table(table, row_group_size=ROW_GROUP)
        self.rows += table.num_rows

    def _check_keys(self, keys: pa.ChunkedArray) -> None:
        if not len(keys):
            return
        whole = pa.concat_arrays([pa.array([self._last], pa.string()), *keys.chunks])
        wrong = pc.indices_nonzero(pc.invert(pc.less(whole[:-1], whole[1:])))
        if len(wrong):
            row = wrong[0].as_py()
            raise IndexFormatError(
                f"{self._path}: rows must be sorted by unique keys; "
                f"row {self.rows + row - 1} is {whole[row]}, the next {whole[row + 1]}"
            )
        self._last = whole[-1].as_py()

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def _publish(path: Path, aside: Path, rows: int, tokenizer: str, operators: dict[str, Any]) -> str:
    digest = hash_file(aside / "rows.parquet")
    said = {"version": VERSION, "rows": rows, "sha256": digest, "tokenizer": tokenizer, "operators": operators}
    said["id"] = _id(said)
    latest = _latest(path)
    if latest is not None and _holds(latest, str(said["id"])):
        return str(said["id"])
    (aside / "generation.json").write_text(json.dumps(said, indent=2) + "\n")
    for name in ("rows.parquet", "generation.json", "."):
        sync(aside / name)
    aside.chmod(0o755)
    os.rename(aside, path / f"gen-{_number(latest) + 1:05d}")
    sync(path)
    return str(said["id"])


def generations(path: Path) -> list[tuple[int, Path]]:
    """Number and folder of every whole generation of this version, from the oldest."""
    found = [entry for entry in path.iterdir() if _NAME.fullmatch(entry.name)] if path.is_dir() else []
    return [(_number(entry), entry) for entry in sorted(found, key=_number) if _is_whole(entry)]


def _is_whole(generation: Path) -> bool:
    try:
        return bool(_verified(generation))
    except IndexFormatError:
        return False


def latest(path: Path) -> str | None:
    """The name of the newest generation of the index at `path`; None if it holds none."""
    found = _latest(path)
    return found.name if found else None


def _latest(path: Path) -> Path | None:
    if not path.is_dir():
        return None
    return max((entry for entry in path.iterdir() if _NAME.fullmatch(entry.name)), key=_number, default=None)


def _number(generation: Path | None) -> int:
    if generation is None:
        return 0
    match = _NAME.fullmatch(generation.name)
    assert match
    return int(match[1])


def _holds(generation: Path, id: str) -> bool:
    try:
        return bool(_verified(generation)["id"] == id)
    except IndexFormatError:
        return False


def _verified(generation: Path) -> dict[str, Any]:
    """What generation.json says, after rows.parquet was checked against it."""
    fix = f"delete {generation.name} to fall back to the one before, or curate again"
    try:
        said = json.loads((generation / "generation.json").read_text())
        digest = hash_file(generation / "rows.parquet")
    except OSError as error:
        raise IndexFormatError(f"{error.filename}: {error.strerror}; {fix}") from None
    except ValueError as error:
        raise IndexFormatError(f"{generation / 'generation.json'}: not JSON ({error}); {fix}") from None
    if not isinstance(said, dict) or said.get("version") != VERSION:
        version = said.get("version") if isinstance(said, dict) else None
        raise IndexFormatError(f"{generation}: version {version}, this release reads {VERSION}; curate again")
    missing = {"id", "rows", "sha256", "tokenizer", "operators"} - said.keys()
    if missing:
        raise IndexFormatError(f"{generation / 'generation.json'}: lacks {sorted(missing)}; {fix}")
    if said["id"] != _id(said):
        raise IndexFormatError(f"{generation / 'generation.json'}: changed after it was written; {fix}")
    if said["sha256"] != digest:
        raise IndexFormatError(
            f"{generation / 'rows.parquet'}: damaged, its sha256 is {digest[:12]}..., "
            f"generation.json says {said['sha256'][:12]}...; {fix}"
        )
    return said


def _id(said: dict[str, Any]) -> str:
    made_from = json.dumps([said[name] for name in ("version", "rows", "sha256", "tokenizer", "operators")])
    return hashlib.sha256(made_from.encode()).hexdigest()
