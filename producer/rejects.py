"""The journal of samples that a unit had to leave out: one of the two things that cannot be computed again.

A line of JSON each: plan, unit, sample key, reason. It is on disk before the unit is served, so that every later try,
by any worker, leaves out the same samples.

Where a unit ended its workers, the journal also says what is tried of it, before it is: plan, unit, attempt, and the
sample's key and part, or nothing at the attempt's end. An attempt whose last line names something died over it.
"""

import errno
import json
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from producer.api.unit import UnitId

# Begins the reason of a sample that ended the process which tried it.
KILLED = "killed its worker"


class RejectsError(ValueError):
    """The journal cannot be read or written."""


class JournalFullError(RejectsError):
    """The journal's disk is full: what would be journaled is not served until there is room."""


class Attempt:
    """One try at a unit, part by part, which this process may not survive."""

    def __init__(self, journal: "Rejects", said: dict[str, Any], tried: "_Tried") -> None:
        self._journal, self._said, self._tried = journal, said, tried

    def deaths(self, key: str, part: str) -> int:
        """How many earlier attempts did not come back from this."""
        return list(self._tried.last.values()).count((key, part))

    def survived(self, key: str, part: str) -> bool:
        """Whether an earlier attempt came back from this, so that it need not be tried again."""
        return (key, part) in self._tried.survived

    def begin(self, key: str, part: str) -> None:
        """What is done next is `part` of sample `key`; on return that survives a power cut."""
        self._journal.append([self._said | {"trying": [key, part]}])

    def end(self, whole: bool) -> None:
        """What was tried last came back, and if `whole` without an error."""
        self._journal.append([self._said | {"trying": None, "whole": whole}])


@dataclass
class _Tried:
    """All attempts at one unit: the last that each tried, None after its end; and what came back."""

    last: dict[str, tuple[str, str] | None] = field(default_factory=dict)
    survived: set[tuple[str, str]] = field(default_factory=set)

    def take(self, said: dict[str, Any]) -> None:
        """Another line of an attempt."""
        attempt, trying = str(said["attempt"]), said["trying"]
        before = self.last.get(attempt)
        if before and (trying or said["whole"]):
            self.survived.add(before)
        self.last[attempt] = trying and (str(trying[0]), str(trying[1]))


class Rejects:
    """The journal at `path`, which any number of processes append to and read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn = 0  # lines that a crash left unfinished
        self._lock = threading.Lock()
        self._read = 0  # bytes
        self._known: dict[tuple[str, UnitId], dict[str, str]] = {}
        self._killers: dict[str, dict[str, str]] = {}  # by plan: samples that no unit should try again
        self._tried: dict[tuple[str, UnitId], _Tried] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RejectsError(f"{path}: {error.strerror}") from None

    def known(self, plan: str, unit: UnitId) -> dict[str, str]:
        """Sample keys that `unit` leaves out, each with its reason; what others appended is read first."""
        with self._lock:
            self._catch_up()
            return dict(self._known.get((plan, unit), {}))

    def killers(self, plan: str) -> dict[str, str]:
        """Sample keys that ended their workers in any unit of `plan`, each with its reason, as of the last `known`."""
        with self._lock:
            return dict(self._killers.get(plan, {}))

    def add(self, plan: str, unit: UnitId, samples: Sequence[tuple[str, str]]) -> None:
        """Append (key, reason) of each sample; on return they survive a power cut."""
        if samples:
            self.append([{"plan": plan, "unit": unit, "key": key, "reason": reason} for key, reason in samples])

    @contextmanager
    def attempt(self, plan: str, unit: UnitId) -> Iterator[Attempt]:
        """A try at a unit that ended earlier workers; leaving it says that this process is alive."""
        with self._lock:
            self._catch_up()
            tried = deepcopy(self._tried.get((plan, unit), _Tried()))
        attempt = Attempt(self, {"plan": plan, "unit": unit, "attempt": uuid.uuid4().hex[:12]}, tried)
        try:
            yield attempt
        except BaseException:
            attempt.end(whole=False)
            raise
        attempt.end(whole=True)

    def append(self, lines: Sequence[dict[str, Any]]) -> None:
        """Append `lines`; on return they survive a power cut."""
        raw = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
        with self._lock:
            try:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
                try:
                    # After a line that was cut short, begin a new one: only the cut one is lost.
                    size = os.fstat(file).st_size
                    torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
                    raw = b"\n" * torn + raw
                    if os.write(file, raw) != len(raw):
                        raise JournalFullError(f"{self.path}: the disk is full")
                    os.fsync(file)
                finally:
                    os.close(file)
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
                raise (JournalFullError if full else RejectsError)(f"{self.path}: {error.strerror}") from None

    def _catch_up(self) -> None:
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                raw = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise RejectsError(f"{self.path}: {error.strerror}") from None
        whole = raw[: raw.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in filter(None, whole.split(b"\n")):
            try:
                said = json.loads(line)
                at = (str(said["plan"]), UnitId(*said["unit"]))
                if "attempt" in said:
                    self._tried.setdefault(at, _Tried()).take(said)
                    continue
                key, reason = str(said["key"]), str(said["reason"])
                self._known.setdefault(at, {})[key] = reason
                if reason.startswith(f"{KILLED}: by"):
                    self._killers.setdefault(at[0], {})[key] = reason
            except (ValueError, KeyError, TypeError):
                self.torn += 1
