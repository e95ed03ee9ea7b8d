"""Latents kept on disk between epochs and runs, in Arrow IPC files of one bucket each.

    <path>/<encoder fingerprint>/<height>x<width>/<writer>-<number>.arrow

Any number of processes read and write at once: every writer has files of its own, a file appears whole by a rename, and
the catalogue is the folder's listing. Arrow notices neither a flipped bit nor a lost page, so each row carries a
checksum that is verified on read; a file that fails is set aside as *.damaged, and what it held counts as missing.
A full disk costs only the saving: what cannot be written is made again another time.
"""

import logging
import os
import threading
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from producer.api.bucket import Bucket
from producer.api.unit import Latent

log = logging.getLogger(__name__)

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("content", pa.string()),
        ("channels", pa.int32()),
        ("mean", pa.large_binary()),  # float16 [channels, height / 8, width / 8]
        ("logvar", pa.large_binary()),
        ("crc", pa.uint32()),  # CRC-32 of encoder, bucket and every column before it
    ]
)

# A file's own checksum of its keys and contents: without it a damaged name would pass for a sample nobody asks for.
_NAMES = b"inkstone.names"

_OPEN_FILES = 128  # kept mapped at once
_FILE_BYTES = 32 << 20  # latents of one bucket gathered into a file
_GATHER_S = 10.0  # the longest that latents are gathered before they are written
# A listing younger than this may miss a file that appeared within the same tick of the file system's clock.
_TICK_NS = 50_000_000
_ORPHAN_S = 3600.0  # a file still aside after this long was left by a writer that died


class CacheConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """Where latents are kept."""

    path: Path
    limit_bytes: int = Field(default=50_000_000_000, ge=0)  # on disk, of all encoders; the oldest files go first


class LatentKey(NamedTuple):
    """A sample as one encoder sees it; `content` is its image's hash, so that a replaced image is another sample."""

    sample: str
    content: str
    bucket: Bucket
    encoder: str


class _Place(NamedTuple):
    file: Path
    row: int


@dataclass
class _Shelf:
    """One encoder's files of one bucket: where each sample is, and what is still to be written."""

    folder: Path
    encoder: str
    bucket: Bucket
    places: dict[tuple[str, str], _Place] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    listed_ns: int = -1
    gathered: dict[tuple[str, str], Latent] = field(default_factory=dict)
    gathered_bytes: int = 0
    since: float = 0.0


class LatentCache:
    """Thread-safe; a process has one. `counts` says what happened: hits, misses, damaged, unwritten, evicted."""

    def __init__(self, config: CacheConfig) -> None:
        self.config = config
        self.counts = dict.fromkeys(("hits", "misses", "written", "damaged", "unwritten", "evicted"), 0)
        self._writer = uuid.uuid4().hex[:12]
        self._number = 0
        self._lock = threading.Lock()
        self._shelves: dict[tuple[str, Bucket], _Shelf] = {}
        self._mapped: OrderedDict[Path, pa.Table] = OrderedDict()
        self._remove_orphans()

    def get(self, keys: Iterable[LatentKey]) -> dict[LatentKey, Latent]:
        """Those of `keys` that are here, every one with its checksum verified."""
        with self._lock:
            wanted = list(keys)
            for shelf in {id(shelf): shelf for shelf in map(self._shelf, wanted)}.values():
                self._list(shelf)
            found = {}
            for key in wanted:
                latent = self._read(self._shelf(key), (key.sample, key.content))
                if latent is not None:
                    found[key] = latent
            self.counts["hits"] += len(found)
            self.counts["misses"] += len(wanted) - len(found)
            return found

    def put(self, latents: Mapping[LatentKey, Latent]) -> None:
        """Keep `latents`; they reach the disk together, with a later `put` or with `flush`."""
        with self._lock:
            for key, latent in latents.items():
                shelf = self._shelf(key)
                shelf.since = shelf.since if shelf.gathered else time.monotonic()
                shelf.gathered[key.sample, key.content] = latent
                shelf.gathered_bytes += latent.mean.nbytes + latent.logvar.nbytes
            now = time.monotonic()
            for shelf in self._shelves.values():
                if shelf.gathered_bytes >= _FILE_BYTES or (shelf.gathered and now - shelf.since > _GATHER_S):
                    self._write(shelf)

    def flush(self) -> None:
        """Write all that was gathered."""
        with self._lock:
            for shelf in self._shelves.values():
                if shelf.gathered:
                    self._write(shelf)

    def _shelf(self, key: LatentKey) -> _Shelf:
        at = (key.encoder, key.bucket)
        if at not in self._shelves:
            self._shelves[at] = _Shelf(self.config.path / key.encoder / str(key.bucket), key.encoder, key.bucket)
        return self._shelves[at]

    # Reading.

    def _list(self, shelf: _Shelf) -> None:
        """Learn of files that other writers added; one stat where nothing changed."""
        try:
            changed = shelf.folder.stat().st_mtime_ns
        except OSError:
            return
        if changed == shelf.listed_ns:
            return
        shelf.listed_ns = changed if time.time_ns() - changed > _TICK_NS else -1
        names = {entry.name for entry in os.scandir(shelf.folder) if entry.name.endswith(".arrow")}
        for name in sorted(names - shelf.files):
            table = self._map(shelf.folder / name)
            if table is None:
                continue
            shelf.files.add(name)
            columns = zip(table["key"].to_pylist(), table["content"].to_pylist(), strict=True)
            for row, at in enumerate(columns):
                shelf.places[at] = _Place(shelf.folder / name, row)
        shelf.files &= names

    def _read(self, shelf: _Shelf, at: tuple[str, str]) -> Latent | None:
        if at in shelf.gathered:
            return shelf.gathered[at]
        place = shelf.places.get(at)
        if place is None:
            return None
        table = self._map(place.file)
        if table is not None:
            latent = _latent(table.slice(place.row, 1).to_pylist()[0], at, shelf)
            if latent is not None:
                return latent
            self._set_aside(place.file, "a row's checksum differs")
        del shelf.places[at]
        return None

    def _map(self, file: Path) -> pa.Table | None:
        """The file's rows, mapped and found well-formed; None if it is gone or damaged."""
        table = self._mapped.get(file)
        if table is not None:
            self._mapped.move_to_end(file)
            return table
        try:
            with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
                table = reader.read_all()
            if not table.schema.equals(_SCHEMA):
                raise pa.ArrowInvalid(f"columns {table.schema.names}")
            # Offsets that point outside the file would end the process, not raise.
            table.validate(full=True)
            if (table.schema.metadata or {}).get(_NAMES) != _names(table):
                raise pa.ArrowInvalid("the checksum of its keys differs")
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError, ValueError) as error:
            self._set_aside(file, str(error))
            return None
        self._mapped[file] = table
        while len(self._mapped) > _OPEN_FILES:
            self._mapped.popitem(last=False)
        return table

    def _set_aside(self, file: Path, why: str) -> None:
        log.warning("cache file %s set aside as .damaged: %s", file, why)
        self.counts["damaged"] += 1
        self._mapped.pop(file, None)
        try:
            os.replace(file, file.with_suffix(".damaged"))
        except OSError as error:
            log.warning("cache file %s could not be set aside: %s", file, error)

    # Writing.

    def _write(self, shelf: _Shelf) -> None:
        """Write what `shelf` gathered as one new file, or let it go if the disk does not take it."""
        rows = [_row(at, latent, shelf) for at, latent in shelf.gathered.items()]
        latents, shelf.gathered, shelf.gathered_bytes = shelf.gathered, {}, 0
        self._number += 1
        file = shelf.folder / f"{self._writer}-{self._number:06}.arrow"
        aside = file.with_suffix(".part")
        try:
            shelf.folder.mkdir(parents=True, exist_ok=True)
            table = pa.Table.from_pylist(rows, schema=_SCHEMA)
            table = table.replace_schema_metadata({_NAMES: _names(table)})
            with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            os.replace(aside, file)
        except OSError as error:
            self.counts["unwritten"] += len(rows)
            log.warning("cache: %d latents not kept: %s", len(rows), error)
            with suppress(OSError):
                aside.unlink()
            return
        self.counts["written"] += len(rows)
        shelf.files.add(file.name)
        for row, at in enumerate(latents):
            shelf.places[at] = _Place(file, row)
        self._evict()

    def _evict(self) -> None:
        """Remove the oldest files until the rest is within the limit."""
        found = sorted(_files(self.config.path, (".arrow", ".damaged")))
        total = sum(size for _, size, _ in found)
        for _, size, file in found:
            if total <= self.config.limit_bytes:
                break
            Path(file).unlink(missing_ok=True)
            self._mapped.pop(Path(file), None)
            total -= size
            self.counts["evicted"] += 1

    def _remove_orphans(self) -> None:
        for changed, _, file in _files(self.config.path, (".part",)):
            if time.time() - changed > _ORPHAN_S:
                Path(file).unlink(missing_ok=True)


def fill(path: Path) -> int:
    """Bytes that the cache at `path` takes on disk."""
    return sum(size for _, size, _ in _files(path, (".arrow", ".damaged", ".part")))


def _files(path: Path, endings: tuple[str, ...]) -> list[tuple[float, int, str]]:
    """Time of change, size and path of each file below `path` with one of `endings`."""
    found = []
    for folder, _, names in os.walk(path):
        for name in names:
            if name.endswith(endings):
                file = os.path.join(folder, name)
                try:
                    stat = os.stat(file)
                except FileNotFoundError:
                    continue
                found.append((stat.st_mtime, stat.st_size, file))
    return found


def _names(table: pa.Table) -> bytes:
    names = zip(table["key"].to_pylist(), table["content"].to_pylist(), strict=True)
    return b"%08x" % zlib.crc32("\0".join(f"{key}\0{content}" for key, content in names).encode())


def _row(at: tuple[str, str], latent: Latent, shelf: _Shelf) -> dict[str, object]:
    row = {
        "key": at[0],
        "content": at[1],
        "channels": latent.mean.shape[0],
        "mean": np.ascontiguousarray(latent.mean, "<f2").tobytes(),
        "logvar": np.ascontiguousarray(latent.logvar, "<f2").tobytes(),
    }
    return row | {"crc": _checksum(row, shelf)}


def _checksum(row: dict[str, object], shelf: _Shelf) -> int:
    crc = zlib.crc32(f"{shelf.encoder} {shelf.bucket}".encode())
    for name in _SCHEMA.names[:-1]:
        value = row[name]
        raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        crc = zlib.crc32(raw, zlib.crc32(b"%d:" % len(raw), crc))
    return crc


def _latent(row: dict[str, object], at: tuple[str, str], shelf: _Shelf) -> Latent | None:
    """The latent in `row`; None if it is not the one asked for, or damaged."""
    if (row["key"], row["content"]) != at or row["crc"] != _checksum(row, shelf):
        return None
    bucket = shelf.bucket
    shape = (int(str(row["channels"])), bucket.height // 8, bucket.width // 8)
    mean, logvar = (np.frombuffer(raw, "<f2") for raw in (row["mean"], row["logvar"]) if isinstance(raw, bytes))
    if mean.size != int(np.prod(shape)) or logvar.size != mean.size:
        return None
    return Latent(bucket.height, bucket.width, mean.reshape(shape), logvar.reshape(shape))
