"""The record of a shard that is not finished: what was answered so far, on disk before anybody counts on it.

    {"crc": ..., "entries": [{...}, ...]}

A line a batch, so that a batch is recorded whole or not at all. A line that a crash tore, or whose checksum differs, is
as if it had never been: what it held is asked again.
"""

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from producer.annotate.config import AnnotateError
from producer.annotate.entry import Entry, EntryError, from_json, to_json
from producer.disk import sync


class Record:
    """The record at `path`. One at a time may write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1

    def append(self, batches: Sequence[Sequence[Entry]]) -> None:
        """Add a line for each of `batches`; on return they survive a power cut."""
        raw = b"".join(_line(batch) for batch in batches)
        try:
            if self._file < 0:
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
                size = os.fstat(self._file).st_size
                # After a line that was cut short, begin a new one: only the cut one is lost.
                if size and os.pread(self._file, 1, size - 1) != b"\n":
                    raw = b"\n" + raw
                sync(self.path.parent)
            if os.write(self._file, raw) != len(raw):
                raise AnnotateError(f"{self.path}: the disk is full; make room and run it again")
            os.fsync(self._file)
        except OSError as error:
            raise AnnotateError(f"{self.path}: {error.strerror}; answers cannot be kept, so none are asked") from None

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


def read(path: Path) -> list[Entry]:
    """The entries of the record at `path`, in order; none if there is no file."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise AnnotateError(f"{path}: {error.strerror}") from None
    return [entry for line in raw.split(b"\n") for entry in _entries(line)]


def _entries(line: bytes) -> list[Entry]:
    try:
        said = json.loads(line)
        entries = said["entries"]
        return [from_json(entry) for entry in entries] if said["crc"] == _crc(entries) else []
    except (ValueError, RecursionError, TypeError, KeyError, EntryError):
        return []


def _line(batch: Sequence[Entry]) -> bytes:
    entries = [to_json(entry) for entry in batch]
    return json.dumps({"crc": _crc(entries), "entries": entries}).encode() + b"\n"


def _crc(entries: Any) -> int:
    return zlib.crc32(json.dumps(entries, sort_keys=True).encode())
