"""One file of the cache: records of one size, in an Arrow IPC file that is never changed once it has its name.

    <writer>-<number>-<start>-<stop>-<digest>.arrow

Arrow notices no flipped bit, and its reader believes the offsets it finds. So nothing is parsed before the digest in
the name was found to be that of every byte outside [start, stop), where the values lie; each record's values have a
checksum of their own, which is compared when it is read. The digest takes in what the file is for, so that one from
another folder is refused too.
"""

import fcntl
import hashlib
import json
import mmap
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

_NAME = re.compile(r"[0-9a-f]{12}-\d+-([0-9a-f]+)-([0-9a-f]+)-([0-9a-f]{24})\.arrow")
_ABOUT = b"inkstone.cache"  # the schema's metadata: JSON of `replaces`


class DamagedError(ValueError):
    """A file is not what was written; the message says how it was noticed."""


class Record(NamedTuple):
    """16 bytes that name it, and its values."""

    id: bytes
    parts: tuple[Any, ...]  # bytes-like, each of its column's size


class Layout(NamedTuple):
    """What a folder's files hold: `label` says of what and for whom, `parts` names a record's values."""

    label: str
    parts: tuple[str, ...]


class CacheFile:
    """A file found sound, mapped into memory. `replaces` names the files whose records it took over."""

    def __init__(self, path: Path, layout: Layout) -> None:
        """Verify and map. DamagedError; FileNotFoundError and other OSErrors as they come."""
        self.path, self.layout = path, layout
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise DamagedError("it is empty")
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.bytes = len(self._map)
        named = _NAME.fullmatch(path.name)
        if named is None:
            raise DamagedError("its name is none of this release")
        start, stop = (int(named[group], 16) for group in (1, 2))
        if not start <= stop <= self.bytes or _digest(self._map, start, stop, layout.label) != named[3]:
            raise DamagedError("its checksum differs")
        batch = _parse(self._map)
        types = [field.type for field in batch.schema]
        if batch.schema.names != ["id", "crc", *layout.parts] or types[:2] != [pa.binary(16), pa.uint32()]:
            raise DamagedError(f"its columns are {batch.schema.names}")
        self.rows = batch.num_rows
        self.replaces: list[str] = json.loads((batch.schema.metadata or {}).get(_ABOUT, b"[]"))
        values = [memoryview(column.buffers()[1]) for column in batch.columns]
        self._ids = values[0]
        self._crcs = np.frombuffer(values[1], "<u4", self.rows)
        self._values = [(view, type_.byte_width) for view, type_ in zip(values[2:], types[2:], strict=True)]

    @property
    def hashes(self) -> np.ndarray:
        """uint64 [rows]: the first half of each record's id."""
        return np.frombuffer(self._ids, "<u8", 2 * self.rows)[::2].copy()

    def read(self, row: int) -> Record | None:
        """A record, copied and then verified; None if it is damaged."""
        # A map that is longer than its file would end the process, not raise.
        if self._map.size() != self.bytes:
            return None
        id = bytes(self._ids[16 * row : 16 * row + 16])
        parts = tuple(bytes(view[size * row : size * row + size]) for view, size in self._values)
        return Record(id, parts) if self._crcs[row] == _crc(id, parts) else None

    def records(self) -> Iterator[Record]:
        """Those that are sound."""
        return (record for row in range(self.rows) if (record := self.read(row)))


def write(folder: Path, name: str, layout: Layout, records: Sequence[Record], replaces: Sequence[str] = ()) -> Path:
    """A new file in `folder`, whole or not at all; `name` is <writer>-<number>. OSError if the disk does not take it.

    While it is being written it is a *.part that its writer has locked: one that is not locked was left by a writer
    that died.
    """
    aside = folder / f"{name}.part"
    sizes = [len(part) for part in records[0].parts]
    assert all([len(part) for part in record.parts] == sizes for record in records), "records of several sizes"
    columns = [b"".join(record.id for record in records)]
    columns.append(np.fromiter((_crc(*record) for record in records), "<u4", len(records)).tobytes())
    columns += [b"".join(record.parts[part] for record in records) for part in range(len(sizes))]
    types = [pa.binary(16), pa.uint32(), *map(pa.binary, sizes)]
    fields = [pa.field(*field, nullable=False) for field in zip(("id", "crc", *layout.parts), types, strict=True)]
    schema = pa.schema(fields, {_ABOUT: json.dumps(list(replaces))} if replaces else None)
    arrays = [
        pa.Array.from_buffers(kind, len(records), [None, pa.py_buffer(raw)])
        for kind, raw in zip(types, columns, strict=True)
    ]
    batch = pa.record_batch(arrays, schema=schema)
    try:
        with locked(aside), pa.OSFile(str(aside), "wb") as sink:
            with pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
            sink.flush()
            start, stop, digest = _measure(aside, layout.label)
            path = folder / f"{name}-{start:x}-{stop:x}-{digest}.arrow"
            os.replace(aside, path)
            return path
    except OSError:
        with suppress(OSError):
            aside.unlink()
        raise


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """The file at `path`, made if need be, locked until this ends or its process does; False if another has it."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _measure(path: Path, label: str) -> tuple[int, int, str]:
    """Where the values of the file at `path` start and stop, and the digest of the rest."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    base = pa.py_buffer(mapped).address
    values = [column.buffers()[1] for column in _parse(mapped).columns[2:]]
    start, stop = values[0].address - base, values[-1].address + values[-1].size - base
    return start, stop, _digest(mapped, start, stop, label)


def _parse(mapped: mmap.mmap) -> pa.RecordBatch:
    with pa.ipc.open_file(pa.py_buffer(mapped)) as reader:
        if reader.num_record_batches != 1:
            raise DamagedError(f"{reader.num_record_batches} record batches, expected one")
        return reader.get_batch(0)


def _digest(mapped: mmap.mmap, start: int, stop: int, label: str) -> str:
    seen = hashlib.blake2b(label.encode() + b"\0", digest_size=12)
    with memoryview(mapped) as view:
        seen.update(view[:start])
        seen.update(view[stop:])
    return seen.hexdigest()


def _crc(id: bytes, parts: Sequence[Any]) -> int:
    crc = zlib.crc32(id)
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc
