"""One folder of the cache: the files of one encoder and bucket, an index of what is in them, and what is to be written.

Any number of processes have the same folder open. Each writes files of its own; a file appears whole by a rename and
goes by an unlink, and the listing is the catalogue. Writers take turns by a lock on the folder, so that no record is
kept twice; one that is frozen while it has the lock holds the others up for `_TURN_S` and no longer.
"""

import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from producer.cache_file import CacheFile, DamagedError, Layout, Record, locked, write

log = logging.getLogger(__name__)

# A listing younger than this may miss a file that appeared within the same tick of the file system's clock.
_TICK_NS = 50_000_000
# A listing of more files than this is followed by so many times its duration without one.
_LISTING_FILES, _LISTING_SHARE = 1000, 20
_TURN_S = 2.0  # the longest that a writer waits for another one
_USED_S = 300.0  # a file's time of change says to within this when it was last used
_FULL = 16 << 20  # bytes of a file that is not merged any more
_HEAD, _FILE = 32, 2048  # bytes that a record takes beside its values, and a file beside its records, at most
_MAPPED, _OPEN = 1 << 30, 64  # bytes and files kept mapped at most
_MERGE = 8  # files of one size class that become one
_FRESH = 4096  # index entries that are kept apart until they are sorted in


class Index:
    """From a record's hash to its file and row, in 16 bytes a record. A hash that is added again has moved."""

    def __init__(self) -> None:
        self._hashes = np.zeros(0, np.uint64)  # sorted
        self._places = np.zeros((0, 2), np.uint32)
        self._fresh: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._hashes) + len(self._fresh)

    def add(self, files: Sequence[tuple[int, np.ndarray]]) -> None:
        """The hashes of files' rows, each with the file's number."""
        if sum(len(hashes) for _, hashes in files) + len(self._fresh) >= _FRESH:
            self._settle(files)
            return
        for file, hashes in files:
            self._fresh.update((at, (file, row)) for row, at in enumerate(hashes.tolist()))

    def find(self, at: int) -> tuple[int, int] | None:
        """The file's number and the row."""
        if at in self._fresh:
            return self._fresh[at]
        slot = int(np.searchsorted(self._hashes, np.uint64(at)))
        if slot == len(self._hashes) or int(self._hashes[slot]) != at:
            return None
        file, row = self._places[slot].tolist()
        return file, row

    def keep(self, alive: np.ndarray) -> None:
        """Forget the records of files that are not `alive`, bool by the file's number."""
        self._settle(())
        kept = alive[self._places[:, 0]]
        self._hashes, self._places = self._hashes[kept], self._places[kept]

    def _settle(self, files: Sequence[tuple[int, np.ndarray]]) -> None:
        hashes = [self._hashes, np.array(list(self._fresh), np.uint64), *(hashes for _, hashes in files)]
        places = [self._places, np.array(list(self._fresh.values()), np.uint32).reshape(-1, 2)]
        for file, rows in files:
            places.append(np.empty((len(rows), 2), np.uint32))
            places[-1][:, 0], places[-1][:, 1] = file, np.arange(len(rows))
        every = np.concatenate(hashes)
        order = np.argsort(every, kind="stable")
        every = every[order]
        last = np.append(every[1:] != every[:-1], True)[: len(every)]
        self._hashes, self._places, self._fresh = every[last], np.concatenate(places)[order[last]], {}


class _Seen(NamedTuple):
    """What is remembered of a file when it is found."""

    name: str
    bytes: int
    hashes: np.ndarray
    replaces: list[str]

    @classmethod
    def of(cls, file: CacheFile) -> "_Seen":
        return cls(file.path.name, file.bytes, file.hashes, file.replaces)


class Mapped:
    """The files kept mapped, of all folders: those used last."""

    def __init__(self) -> None:
        self._bytes = 0
        self._files: OrderedDict[Path, CacheFile] = OrderedDict()

    def open(self, path: Path, layout: Layout) -> CacheFile:
        """The file at `path`; errors as CacheFile's."""
        file = self._files.get(path)
        if file is not None:
            self._files.move_to_end(path)
            return file
        file = self._files[path] = CacheFile(path, layout)
        self._bytes += file.bytes
        while len(self._files) > 1 and (self._bytes > _MAPPED or len(self._files) > _OPEN):
            self.forget(next(iter(self._files)))
        return file

    def forget(self, path: Path) -> None:
        file = self._files.pop(path, None)
        self._bytes -= file.bytes if file else 0


class Folder:
    """Not thread-safe. `counts` is the cache's; `gathered` holds what is still to be written, by id."""

    def __init__(self, path: Path, layout: Layout, writer: str, mapped: Mapped, counts: dict[str, int]) -> None:
        self.path, self.layout = path, layout
        self.gathered: dict[bytes, Record] = {}
        self.gathered_bytes = 0
        self.since = 0.0  # monotonic, of the first one gathered
        self._writer, self._mapped, self._counts = writer, mapped, counts
        self._written = 0
        self._index = Index()
        self._names: list[str] = []  # by the file's number, "" once it is gone
        self._sizes: list[tuple[int, int]] = []  # bytes and rows, by the file's number
        self._numbers: dict[str, int] = {}
        self._gone = 0  # rows of files that are gone
        self._used: dict[str, float] = {}
        self._listed_ns = -1
        self._next_listing = 0.0

    def get(self, ids: Iterable[bytes]) -> dict[bytes, tuple[Any, ...]]:
        """The values of those of `ids` that are here, each verified."""
        self.refresh()
        found = {}
        for id in ids:
            parts = self.gathered[id].parts if id in self.gathered else self._read(id)
            if parts is not None:
                found[id] = parts
        return found

    def put(self, record: Record) -> None:
        """Gather it."""
        self.since = self.since if self.gathered else time.monotonic()
        self.gathered_bytes += 0 if record.id in self.gathered else sum(map(len, record.parts))
        self.gathered[record.id] = record

    def drop(self) -> int:
        """Let go of what was gathered; how many records that were."""
        count, self.gathered, self.gathered_bytes = len(self.gathered), {}, 0
        return count

    def write(self, room: Callable[[int], None]) -> None:
        """Write what was gathered and is not here yet as one file. OSError, also `room`'s: it is still gathered."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self._turn() as mine:
            self.refresh(force=True)
            fresh = [record for record in self.gathered.values() if self._find(record.id) is None]
            if fresh:
                room(_FILE + len(fresh) * (_HEAD + sum(map(len, fresh[0].parts))))
                self._add(fresh)
                self._counts["written"] += len(fresh)
            self.drop()
            if mine:
                # What could not be merged is there as it was.
                with suppress(OSError):
                    self._merge(room)

    def refresh(self, *, force: bool = False) -> None:
        """Learn which files came and went; one stat where nothing changed."""
        try:
            changed = self.path.stat().st_mtime_ns
            begun = time.monotonic()
            if (changed == self._listed_ns or begun < self._next_listing) and not force:
                return
            names = {entry.name for entry in os.scandir(self.path) if entry.name.endswith(".arrow")}
            took = time.monotonic() - begun
            self._next_listing = begun + _LISTING_SHARE * took if len(names) > _LISTING_FILES else 0.0
        except OSError:
            changed, names = -1, set()
        self._listed_ns = changed if time.time_ns() - changed > _TICK_NS else -1
        for name in self._numbers.keys() - names:
            self._forget(name)
        # One at a time: each has a file descriptor while it is open.
        found = [_Seen.of(file) for name in sorted(names - self._numbers.keys()) if (file := self._open(name))]
        replaced = {name for seen in found for name in seen.replaces}
        self._learn([seen for seen in found if seen.name not in replaced])
        for name in replaced & names:
            # Its records are in the other file: a crash came between the two.
            self._remove(name)
        if self._gone > _FRESH + len(self._index) // 2:
            self._index.keep(np.array([bool(name) for name in self._names]))
            self._gone = 0

    def _find(self, id: bytes) -> tuple[str, int] | None:
        place = self._index.find(int.from_bytes(id[:8], "little"))
        name = self._names[place[0]] if place else ""
        return (name, place[1]) if place and name else None

    def _read(self, id: bytes) -> tuple[Any, ...] | None:
        for _ in range(2):
            place = self._find(id)
            if place is None:
                return None
            file = self._open(place[0])
            if file is not None:
                break
            self.refresh(force=True)  # merged into another since
        else:
            return None
        record = file.read(place[1])
        if record is None:
            self._salvage(file)
        if record is None or record.id != id:
            return None
        now = time.monotonic()
        if now - self._used.get(place[0], -_USED_S) >= _USED_S:
            self._used[place[0]] = now
            with suppress(OSError):
                os.utime(file.path)
        return record.parts

    def _open(self, name: str) -> CacheFile | None:
        """The file; None if it is gone or damaged."""
        path = self.path / name
        try:
            return self._mapped.open(path, self.layout)
        except FileNotFoundError:
            self._forget(name)
        except (DamagedError, pa.ArrowException, OSError, ValueError) as error:
            self._set_aside(name, str(error))
        return None

    def _set_aside(self, name: str, why: str) -> None:
        log.warning("cache file %s set aside as .damaged: %s", self.path / name, why)
        self._counts["damaged"] += 1
        self._forget(name)
        try:
            os.replace(self.path / name, (self.path / name).with_suffix(".damaged"))
        except OSError as error:
            log.warning("cache file %s could not be set aside: %s", self.path / name, error)

    def _salvage(self, file: CacheFile) -> None:
        """Set a file aside of which a record is damaged, and keep the sound ones."""
        try:
            with self._turn():
                sound = list(file.records()) if file.path.exists() else []
                if sound:
                    self._add(sound, [file.path.name])
        except OSError as error:
            log.warning("cache file %s: its sound records are not kept: %s", file.path, error)
        self._set_aside(file.path.name, "the checksum of a record differs")

    def _add(self, records: Sequence[Record], replaces: Sequence[str] = ()) -> None:
        self._written += 1
        path = write(self.path, f"{self._writer}-{self._written:06}", self.layout, records, replaces)
        file = self._open(path.name)
        if file is not None:
            self._learn([_Seen.of(file)])

    def _merge(self, room: Callable[[int], None]) -> None:
        """Make one file of small ones of a size, so that their number grows with the logarithm of what is kept."""
        while True:
            classes: dict[int, list[str]] = {}
            for name, (size, _) in zip(self._names, self._sizes, strict=True):
                if name and size < _FULL:
                    classes.setdefault(int(math.log(_FULL / size, _MERGE)), []).append(name)
            small = next((names[:_MERGE] for names in classes.values() if len(names) >= _MERGE), None)
            if small is None:
                return
            room(sum(self._sizes[self._numbers[name]][0] for name in small))
            files = [file for name in small if (file := self._open(name))]
            records = {record.id: record for file in files for record in file.records()}
            if records:
                self._add(list(records.values()), [file.path.name for file in files])
                self._counts["merged"] += len(files)
            for file in files:
                self._remove(file.path.name)

    def _learn(self, files: Sequence["_Seen"]) -> None:
        added = []
        for seen in files:
            added.append((len(self._names), seen.hashes))
            self._numbers[seen.name] = len(self._names)
            self._names.append(seen.name)
            self._sizes.append((seen.bytes, len(seen.hashes)))
        self._index.add(added)

    def _forget(self, name: str) -> None:
        self._mapped.forget(self.path / name)
        self._used.pop(name, None)
        number = self._numbers.pop(name, None)
        if number is not None:
            self._names[number] = ""
            self._gone += self._sizes[number][1]

    def _remove(self, name: str) -> None:
        self._forget(name)
        with suppress(OSError):
            (self.path / name).unlink()

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """Be the folder's only writer, as far as that can be had."""
        end = time.monotonic() + _TURN_S
        while True:
            with locked(self.path / ".lock") as mine:
                if mine or time.monotonic() > end:
                    yield mine
                    return
            time.sleep(0.01)
