"""The recipe journal: which plan is in force from which step on. One of the two things that cannot be computed again.

    {"crc": ..., "number": 1, "from_step": 1200, "id": "...", "before": "...", "body": {...}}

A line each, written by the coordinator only and on disk before anybody hears of it. The last line may be torn by a
crash: nobody has heard of that one, so it is dropped. A line's id is a hash of its content and of the id before, so an
id stands for the whole past: whoever knows the same id has trained by the same plan up to there. What the body means is
the plan's business (producer/plan.py: Terms).
"""

import fcntl
import hashlib
import json
import os
import time
import uuid
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from producer.api.protocol import Welcome
from producer.disk import sync

# Characters of a line; a recipe takes a few thousand at most.
LINE_LIMIT = 256 << 10

_LOCK_POLL_S = 0.1
_TRAINERS = 4096  # that are remembered


class JournalError(ValueError):
    """The journal cannot be read or written, or is not of this fleet; the message says where and what mends it."""


@dataclass(frozen=True)
class Line:
    """The plan called `id` is in force from `from_step` until the next line's. `before` is the id of the line before.

    `units` make a step.
    """

    number: int
    from_step: int
    id: str
    before: str
    units: int
    body: dict[str, Any]


def first_line(offer: Welcome) -> Line:
    """The first line of a fleet's journal: what its workers were started with."""
    return Line(0, 0, offer.plan, "", offer.units, json.loads(offer.terms or "{}"))


def successor(last: Line, from_step: int, units: int, body: dict[str, Any]) -> Line:
    """The line that follows `last`; its id is a hash of all that is in it and came before it."""
    number = last.number + 1
    made_from = json.dumps([last.id, number, from_step, units, body], sort_keys=True)
    return Line(number, from_step, hashlib.sha256(made_from.encode()).hexdigest()[:16], last.id, units, body)


def to_text(line: Line) -> str:
    """`line` as it is written and sent, with a checksum in front."""
    said = asdict(line)
    return json.dumps({"crc": _crc(said), **said}, sort_keys=False)


def from_text(text: str) -> Line:
    """The line in `text`. JournalError if it is not whole."""
    if len(text) > LINE_LIMIT:
        raise JournalError(f"a journal's line of {len(text)} characters; at most {LINE_LIMIT} are taken")
    try:
        said = json.loads(text)
        crc = said.pop("crc")
        line = Line(**said)
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError) as error:
        raise JournalError(f"not a journal's line: {type(error).__name__}") from None
    kinds = (int, int, str, str, int, dict)
    if tuple(type(value) for value in said.values()) != kinds or crc != _crc(said):
        raise JournalError("a journal's line whose checksum differs")
    return line


def _crc(said: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(said, sort_keys=True).encode())


def in_force(lines: Sequence[Line], step: int) -> Line:
    """The line whose plan makes `step`."""
    return next((line for line in reversed(lines) if line.from_step <= step), lines[0])


def after(lines: Sequence[Line], id: str) -> tuple[Line, ...] | None:
    """The lines that follow the one called `id`; None if there is no such line."""
    for index, line in enumerate(lines):
        if line.id == id:
            return tuple(lines[index + 1 :])
    return None


def check_chain(lines: Sequence[Line]) -> None:
    """JournalError unless each line follows from the one before it."""
    for last, line in pairwise(lines):
        if line != successor(last, line.from_step, line.units, line.body):
            raise JournalError(f"entry {line.number} does not follow from entry {last.number}")
        if line.from_step < last.from_step:
            raise JournalError(
                f"entry {line.number} begins at step {line.from_step}, entry {last.number} at {last.from_step}; "
                "a later entry cannot begin earlier"
            )


def read(path: Path) -> tuple[Line, ...]:
    """The whole lines of the journal at `path`; none if there is no file. JournalError if one is damaged."""
    return _read(path)[0]


def _read(path: Path) -> tuple[tuple[Line, ...], int]:
    """The lines, and how many bytes of the file they are: what follows was torn by a crash."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return (), 0
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from None
    whole, lines = raw.rfind(b"\n") + 1, []
    for number, text in enumerate(raw[:whole].split(b"\n")[:-1], start=1):
        try:
            lines.append(from_text(text.decode("utf-8", "replace")))
        except JournalError as error:
            raise JournalError(
                f"{path}: line {number}: {error}; restore the file from a copy, or move it away to begin anew from "
                "the config's recipe"
            ) from None
    try:
        check_chain(lines)
    except JournalError as error:
        raise JournalError(f"{path}: {error}; restore the file from a copy") from None
    return tuple(lines), whole


class Journal:
    """The lines of a fleet whose first one is `first`; with a `path`, kept there. One journal object a path at a time.

    Beside the lines it keeps, in PATH.handed, how far each trainer was given units: a note, not durable against a power
    cut, that a coordinator which takes over reads.
    """

    def __init__(self, path: Path | None, first: Line, *, timeout_s: float = 20.0) -> None:
        """Read what is there; JournalError if it is another fleet's, damaged, or held by another coordinator."""
        self.path = path
        self.lines: tuple[Line, ...] = (first,)
        self.handed: dict[str, tuple[int, int]] = {}  # trainer -> incarnation, the last step it was given units of
        self.fresh = True  # whether nobody can have been told of anything before
        self.certain = True  # whether `handed` is all that was ever handed out
        self._file = self._note = -1
        if path is None:
            return
        self._file = _open(path, timeout_s)
        try:
            self._take_over(path, first)
        except BaseException:
            self.close()
            raise

    @property
    def last(self) -> Line:
        """The newest line."""
        return self.lines[-1]

    def at(self, step: int) -> Line:
        """The line whose plan makes `step`."""
        return in_force(self.lines, step)

    def append(self, line: Line) -> None:
        """Add `line`; on return it survives a power cut. JournalError if it does not fit or cannot be written."""
        check_chain((self.last, line))
        if self.path:
            self._write(self.path, line)
        self.lines = (*self.lines, line)

    def note(self, trainer: str, incarnation: int, step: int) -> None:
        """`trainer` was given units of `step`, or has gone back to before it."""
        if self.handed.get(trainer) == (incarnation, step):
            return
        if trainer not in self.handed and len(self.handed) >= _TRAINERS:
            # Those that are gone make room first.
            del self.handed[min(self.handed, key=lambda name: self.handed[name][1])]
        self.handed[trainer] = (incarnation, step)
        if self._note >= 0:
            said = json.dumps([_boot(), self.handed])
            # In place, since it changes with every step; a torn note is one that is not there.
            raw = f"{zlib.crc32(said.encode())} {said}\n".encode()
            os.ftruncate(self._note, os.pwrite(self._note, raw, 0))

    def close(self) -> None:
        """Let another coordinator have the file."""
        for file in (self._file, self._note):
            if file >= 0:
                os.close(file)
        self._file = self._note = -1

    def __del__(self) -> None:
        self.close()

    def _take_over(self, path: Path, first: Line) -> None:
        found, whole = _read(path)
        os.ftruncate(self._file, whole)
        self.fresh = not found
        if not found:
            self._write(path, first)
        elif found[0].id != first.id:
            raise JournalError(
                f"{path}: begins with plan {found[0].id}, these producers with {first.id}: their seed, model, index or "
                "first recipe is another. Start them with the settings that this journal was begun with and change "
                "the recipe with launch/recipe.py apply, or move the journal away to begin anew"
            )
        else:
            self.lines = found
        self._note = os.open(path.with_name(f"{path.name}.handed"), os.O_RDWR | os.O_CREAT, 0o644)
        if not self.fresh:
            boot, self.handed = _noted(os.pread(self._note, 1 << 20, 0))
            # What was written right before a power cut may not have reached the disk.
            self.certain = boot == _boot()

    def _write(self, path: Path, line: Line) -> None:
        raw = f"{to_text(line)}\n".encode()
        size = os.fstat(self._file).st_size
        try:
            if os.pwrite(self._file, raw, size) != len(raw):
                raise OSError(0, "the disk is full")
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, size)
            raise JournalError(f"{path}: {error.strerror}; nothing was changed") from None


def _open(path: Path, timeout_s: float) -> int:
    """The file at `path`, held by this process alone; the kernel lets go when it dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        sync(path.parent)
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from None
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() > deadline:
                os.close(file)
                raise JournalError(f"{path}: another coordinator writes it; end that fleet first") from None
            time.sleep(_LOCK_POLL_S)


def _noted(raw: bytes) -> tuple[str, dict[str, tuple[int, int]]]:
    """Since which boot of the machine, and what was noted; nothing if it was torn."""
    crc, _, said = raw.partition(b"\n")[0].partition(b" ")
    if crc != str(zlib.crc32(said)).encode():
        return "", {}
    boot, handed = json.loads(said)
    return boot, {str(name): (int(start), int(step)) for name, (start, step) in handed.items()}


@cache
def _boot() -> str:
    """What tells one start of this machine from another."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(uuid.uuid4())  # unknown: never the same


def texts(lines: Iterable[Line]) -> tuple[str, ...]:
    """Lines as they are sent."""
    return tuple(map(to_text, lines))
