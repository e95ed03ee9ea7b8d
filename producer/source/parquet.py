"""Parquet files with the images in them: a column of bytes, and columns of captions by name.

Where images lie in the file as they are (no compression, no dictionary), listing finds each one's bytes, and a worker
reads them by offset as out of a tar. Elsewhere one image costs its row group's column; which row is in the member's
name, "<row group>/<row in it>", and the offset is -1.
"""

import re
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, Field

from producer.source.caption import Captions, read_text
from producer.source.pages import PageError, check_chunk, check_footer
from producer.source.shard import RawSample, Shard, SourceError, UnreadableError, refused
from producer.source.store import Store

_BATCH = 16  # rows in memory
_HELD = 8 << 20  # bytes of an image up to which listing hands it on instead of having it read again
_MAX_GROUP = 512 << 20  # stored bytes of a column that are read for one image, where it has no offset
_FOOTERS = 64  # kept, parsed, for reading rows
_WINDOW = 4 << 20  # bytes read at a time when images are looked for
_PLACE = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")  # a member's name
_BETWEEN = 1 << 20  # bytes between two images: a page's header and levels

# Of what Arrow raises for a damaged file; on Python's own errors for bytes that are no text, see caption.py.
_DAMAGE = (pa.ArrowException, OSError, PageError, ValueError, KeyError, IndexError, OverflowError, MemoryError)


class ParquetConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """Which columns hold what."""

    image: str = Field(default="image", min_length=1)  # of bytes, or of a struct whose field "bytes" holds them
    captions: dict[str, str] = {"raw": "caption"}  # split -> column of text


class Group(NamedTuple):
    """A row group's column of images."""

    start: int  # byte in the file
    end: int
    plain: bool  # images may lie in it as they are


class Parquet:
    """All .parquet files of a store."""

    def __init__(self, store: Store, config: ParquetConfig) -> None:
        self._store, self._config = store, config
        self._footers: OrderedDict[str, pq.FileMetaData] = OrderedDict()
        self._lock = threading.Lock()

    def shards(self) -> list[Shard]:
        """Every .parquet below the root, by name."""
        files = self._store.files(".parquet")
        if not files:
            raise SourceError(f"source.path: {self._store.root} holds no .parquet, nothing to read")
        return [Shard(file.name, file.stamp, fault=file.fault) for file in files]

    def samples(self, shard: Shard) -> Iterator[RawSample]:
        """The rows of a file in their order; a row group that cannot be read is one entry that says so."""
        if shard.fault:
            yield refused(shard)
            return
        stem = shard.name.removesuffix(".parquet")
        with self._store.open(shard.name) as raw:
            try:
                file = _opened(raw)
                leaf = self._leaf(file)
                numbers = range(file.metadata.num_row_groups)
            except SourceError:
                raise
            except _DAMAGE as error:
                yield RawSample(f"{stem}/(damaged)", shard.name, "", 0, 0, {}, f"cannot be read: {_said(error)}")
                return
            first = 0
            for number in numbers:
                rows = file.metadata.row_group(number).num_rows
                try:
                    yield from self._group(raw, file, leaf, number, first, shard.name)
                except SourceError:
                    raise
                except _DAMAGE as error:
                    why = f"row group {number}, said to hold {rows} rows, cannot be read further: {_said(error)}"
                    yield RawSample(f"{stem}/(damaged-{number:05d})", shard.name, "", 0, 0, {}, why)
                first += max(0, rows)

    def _leaf(self, file: pq.ParquetFile) -> str:
        """The image's column as parquet spells it; PageError unless it holds bytes and the captions text."""
        schema, config = file.schema_arrow, self._config
        for name in (config.image, *config.captions.values()):
            if len(schema.get_all_field_indices(name)) != 1:
                raise PageError(f"no column {name!r} among {', '.join(schema.names)[:300]}; set source.parquet")
        kind = schema.field(config.image).type
        for name in config.captions.values():
            if not _is_text(schema.field(name).type):
                raise PageError(f"column {name!r} is {str(schema.field(name).type)[:100]}, which is no text")
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type):
            return f"{config.image}.bytes"
        if not _is_bytes(kind):
            raise PageError(
                f"column {config.image!r} is {str(kind)[:100]}, which is neither bytes nor a struct of them"
            )
        return config.image

    def _group(
        self, raw: BinaryIO, file: pq.ParquetFile, leaf: str, number: int, first: int, shard: str
    ) -> Iterator[RawSample]:
        group = _checked(raw, file, number, leaf)
        for name in self._config.captions.values():
            _checked(raw, file, number, name)
        finder = Finder(raw, group) if group.plain else None
        stem, row = shard.removesuffix(".parquet"), 0
        columns = [leaf, *dict.fromkeys(self._config.captions.values())]
        for batch in file.iter_batches(_BATCH, row_groups=[number], columns=columns, use_threads=False):
            images = _bytes_of(batch.column(self._config.image))
            texts = {split: batch.column(name) for split, name in self._config.captions.items()}
            for position, image in enumerate(images):
                key, member = f"{stem}/{first + row:08d}", f"{number}/{row}"
                captions = Captions({})
                for split, column in texts.items():
                    captions |= _caption(split, column, position)
                row += 1
                if image is None:
                    yield RawSample(key, shard, member, -1, 0, captions.texts, "no image in its row", captions.faults)
                    continue
                size = len(image)
                offset = finder.find(memoryview(image).cast("B")) if finder else -1
                fault = ""
                if offset < 0 and group.end - group.start > _MAX_GROUP:
                    fault = (
                        f"one image of row group {number} costs reading {group.end - group.start} bytes, the limit is "
                        f"{_MAX_GROUP}; write smaller row groups, or images without compression and dictionary"
                    )
                held = image.to_pybytes() if size <= _HELD else None
                yield RawSample(key, shard, member, offset, size, captions.texts, fault, captions.faults, image=held)
        if row != file.metadata.row_group(number).num_rows:
            raise PageError(f"it ends after {row} rows")

    def read(self, shard: str, member: str, offset: int, size: int) -> bytes:
        """An image by its offset, or by its row where it has none."""
        if offset >= 0:
            raw = self._store.read(shard, offset, size)
        else:
            place = _PLACE.fullmatch(member)
            if place is None:
                raise UnreadableError(f"{self._store.root}/{shard}: {member[:200]!r} is no row")
            raw = self._row(shard, int(place[1]), int(place[2]))
        if len(raw) != size:
            raise UnreadableError(
                f"{self._store.root}/{shard}: row {member} has {len(raw)} bytes, {size} when curated; curate again"
            )
        return raw

    def _row(self, shard: str, number: int, row: int) -> bytes:
        skipped = 0
        with self._store.open(shard) as raw:
            try:
                with self._lock:
                    footer = self._footers.pop(shard, None)
                file = _opened(raw, footer)
                leaf = self._leaf(file)
                _checked(raw, file, number, leaf)
                for batch in file.iter_batches(_BATCH, row_groups=[number], columns=[leaf], use_threads=False):
                    if row < skipped + batch.num_rows:
                        image = _bytes_of(batch.column(self._config.image))[row - skipped]
                        # Kept only where it has just served: the file may have been replaced.
                        self._keep(shard, file.metadata)
                        return b"" if image is None else image.to_pybytes()
                    skipped += batch.num_rows
            except _DAMAGE as error:
                if isinstance(error, SourceError):
                    raise
                raise UnreadableError(f"{self._store.root}/{shard}: row {number}/{row}: {_said(error)}") from None
        raise UnreadableError(f"{self._store.root}/{shard}: row group {number} has only {skipped} rows")

    def _keep(self, shard: str, footer: pq.FileMetaData) -> None:
        with self._lock:
            self._footers[shard] = footer
            while len(self._footers) > _FOOTERS:
                self._footers.popitem(last=False)


class Finder:
    """Where the values of a plain column chunk lie, asked for in their order."""

    def __init__(self, raw: BinaryIO, group: Group) -> None:
        self._raw, self._at, self._end = raw, group.start, group.end
        self._window, self._from = b"", group.start

    def find(self, value: memoryview) -> int:
        """The offset of `value` in the file, -1 if it is not among what follows the one before.

        A value is stored as its length in four bytes and its bytes (parquet's PLAIN encoding).
        """
        pattern = struct.pack("<I", len(value)) + value[:64]
        span = self._bytes(self._at, len(pattern) + _BETWEEN)
        found = span.find(pattern)
        if found < 0:
            return -1
        start = self._at + found + 4
        if self._bytes(start, len(value)) != value:
            return -1
        self._at = start + len(value)
        return start

    def _bytes(self, start: int, size: int) -> bytes:
        size = max(0, min(size, self._end - start))
        if start < self._from or start + size > self._from + len(self._window):
            position = self._raw.tell()
            self._raw.seek(start)
            self._window, self._from = self._raw.read(min(max(size, _WINDOW), self._end - start)), start
            self._raw.seek(position)
        return self._window[start - self._from : start - self._from + size]


def _opened(raw: BinaryIO, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    size = raw.seek(0, 2)
    if footer is None:
        check_footer(lambda offset, count: _pread(raw, offset, count), size)
    return pq.ParquetFile(raw, metadata=footer, pre_buffer=False, buffer_size=1 << 20)


def _checked(raw: BinaryIO, file: pq.ParquetFile, number: int, leaf: str) -> Group:
    """The column chunk of `leaf`, its pages' sizes checked."""
    group = file.metadata.row_group(number)
    named = [column for n in range(group.num_columns) if (column := group.column(n)).path_in_schema == leaf]
    if len(named) != 1:
        raise PageError(f"row group {number} has {len(named)} columns {leaf}")
    (column,) = named
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset is not None:
        start = min(start, column.dictionary_page_offset)
    end, size = start + column.total_compressed_size, raw.seek(0, 2)
    if column.file_path or not 4 <= start <= end <= size:
        raise PageError(f"column {leaf} of row group {number} claims bytes {start} to {end} of {size}")
    check_chunk(lambda offset, count: _pread(raw, offset, count), start, end)
    plain = column.compression == "UNCOMPRESSED" and not column.has_dictionary_page
    return Group(start, end, plain)


def _pread(raw: BinaryIO, offset: int, size: int) -> bytes:
    raw.seek(offset)
    return raw.read(size)


def _bytes_of(column: Any) -> list[Any]:
    """A buffer for each row, None where there is no image."""
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    return [value.as_buffer() if value.is_valid else None for value in column]


def _caption(split: str, column: Any, position: int) -> Captions:
    value = column[position]
    if not value.is_valid:
        return Captions({})
    return read_text(split, value.as_buffer().to_pybytes())


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_bytes(kind))


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
