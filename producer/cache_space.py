"""How much disk the cache may take: what goes when it is full, and what happens when the disk is.

Samples come in another order in every pass, so a cache that cannot hold them all gains nothing by replacing what it
holds by what was made last: with room for half of a set, keeping what is there finds half of the samples in each pass,
dropping the oldest for the newest finds a fifth. So files in use stay, and what is new is not kept, until others fell
out of use: those of another encoder, of a bucket the recipe no longer has, of samples it no longer selects.
"""

import errno
import logging
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from producer.cache_file import locked

log = logging.getLogger(__name__)

_FOLDER_IDLE_S = 900.0  # a folder none of whose files was used for this long is out of use
_FILE_IDLE_S = 86_400.0  # a file of a folder in use that no sample was read from for this long
_ASIDE = 16  # damaged files kept for people to look at
_SCAN_SHARE = 20  # a look at all files is followed by this many times its duration without one
_SCAN_S = 1.0  # and by at least this


class FullError(OSError):
    """There is no room within the limit, or too little space on the disk."""


class Entry(NamedTuple):
    used: float  # seconds since the epoch
    bytes: int
    path: str


class Space:
    """Keeps the files below `path` within `limit` bytes, and `spare` bytes of the disk free for others."""

    def __init__(self, path: Path, limit: int, spare: int, counts: dict[str, int]) -> None:
        self.path, self.limit, self.spare, self._counts = path, limit, spare, counts
        self._encoders: set[str] = set()
        self._total = 0
        self._next_scan = 0.0

    def serve(self, encoder: str) -> None:
        """Files of `encoder` are this process's own."""
        self._encoders.add(encoder)

    def room(self, size: int) -> None:
        """Make room for `size` bytes, which are then counted; FullError if there is none."""
        now = time.monotonic()
        if self._total + size > self.limit and now < self._next_scan:
            raise FullError(errno.EDQUOT, f"cache.limit_bytes {self.limit}: all of it is in use")
        if now >= self._next_scan:
            self._scan(size)
            took = time.monotonic() - now
            self._next_scan = time.monotonic() + max(_SCAN_S, _SCAN_SHARE * took)
            if self._total + size > self.limit:
                raise FullError(errno.EDQUOT, f"cache.limit_bytes {self.limit}: all of it is in use")
        free = self._free()
        if free - size < self.spare:
            raise FullError(errno.ENOSPC, f"{free} bytes are free on its disk, cache.spare_bytes are {self.spare}")
        self._total += size

    def clean(self) -> None:
        """Remove what writers that died left half-written."""
        for entry in entries(self.path, (".part",)):
            with suppress(OSError), locked(Path(entry.path)) as mine:
                if mine:
                    os.unlink(entry.path)

    def _free(self) -> int:
        return shutil.disk_usage(self.path).free

    def _scan(self, size: int) -> None:
        aside = sorted(entries(self.path, (".damaged",)))
        for entry in aside[: max(0, len(aside) - _ASIDE)]:
            _remove(entry)
        found = entries(self.path, (".arrow", ".damaged", ".part"))
        self._total = sum(entry.bytes for entry in found)
        if self._total + size <= self.limit:
            return
        for least, entry in sorted(self._worth(found)):
            # Files in use go only where the limit itself was lowered.
            wanted = size if least < _IN_USE else 0
            if self._total + wanted <= self.limit:
                continue
            _remove(entry)
            self._total -= entry.bytes
            self._counts["evicted"] += entry.path.endswith(".arrow")

    def _worth(self, found: list[Entry]) -> list[tuple[int, Entry]]:
        """Each file that may go and how little it is worth: the lowest goes first, and of those the one used first."""
        now, folders = time.time(), dict[str, float]()
        for entry in found:
            folder = os.path.dirname(entry.path)
            folders[folder] = max(folders.get(folder, 0.0), entry.used)
        worth = []
        for entry in found:
            folder = os.path.dirname(entry.path)
            idle = now - folders[folder] > _FOLDER_IDLE_S
            if entry.path.endswith(".part"):
                continue
            if entry.path.endswith(".damaged"):
                worth.append((0, entry))
            elif idle:
                worth.append((2 if os.path.basename(os.path.dirname(folder)) in self._encoders else 1, entry))
            else:
                worth.append((3 if now - entry.used > _FILE_IDLE_S else _IN_USE, entry))
        return worth


_IN_USE = 4


def fill(path: Path) -> int:
    """Bytes that the cache at `path` takes on disk."""
    return sum(entry.bytes for entry in entries(path, (".arrow", ".damaged", ".part")))


def entries(path: Path, endings: tuple[str, ...]) -> list[Entry]:
    """The files below `path` with one of `endings`."""
    found = []
    for folder, _, names in os.walk(path):
        for name in names:
            if name.endswith(endings):
                file = os.path.join(folder, name)
                try:
                    stat = os.stat(file)
                except FileNotFoundError:
                    continue
                found.append(Entry(stat.st_mtime, stat.st_size, file))
    return found


def _remove(entry: Entry) -> None:
    with suppress(OSError):
        os.unlink(entry.path)
