"""What a shard's earlier processes were at when they ended: operators run native code, and models, which may take the
process with them.

Beside the score file one small file says where the process is, another where earlier ones ended. Ray starts a task
again whose process ended, without limit; the new one finds both, and asks more carefully where the last one ended.
"""

import faulthandler
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Once may be the machine's end, or memory that others took.
ENOUGH = 2
_STDERR = 2  # where the stacks of a process that hangs go
_SIZE = 256  # bytes of the file that says where we are: written whole each time


class Deaths:
    """Of the processes that worked at the score file `path`; without one nothing is known, and nothing written."""

    def __init__(self, path: Path | None = None, hang_s: float = 0.0) -> None:
        """What takes more than `hang_s` seconds ends this process; 0: nothing does. OSError where the folder takes no
        file.
        """
        self._hang_s = hang_s
        self._before: Counter[tuple[str, int, int]] = Counter()
        self._here: int | None = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._now, self._past = (path.with_name(f"{path.name}.{kind}") for kind in ("now", "past"))
        said = [*_lines(self._past), *_lines(self._now)]
        if said:
            aside = self._past.with_name(f"{self._past.name}.part")
            aside.write_text("".join(f"{json.dumps(one)}\n" for one in said))
            os.replace(aside, self._past)
        self._before.update(said)
        self._here = os.open(self._now, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def count(self, name: str, first: int, number: int) -> int:
        """How many processes ended while `name` was at `number` samples from the `first` of the shard."""
        return self._before[name, first, number]

    @contextmanager
    def at(self, name: str, first: int, number: int) -> Iterator[None]:
        """Inside, `name` is at these samples."""
        if self._here is None:
            yield
            return
        # It outlives the process, not the machine: then it was not the operator.
        os.pwrite(self._here, json.dumps([name, first, number]).ljust(_SIZE).encode(), 0)
        if self._hang_s:
            # A thread of its own, which needs no lock of Python's: native code may hold that while it hangs.
            faulthandler.dump_traceback_later(self._hang_s, exit=True, file=_STDERR)
        try:
            yield
        finally:
            if self._hang_s:
                faulthandler.cancel_dump_traceback_later()
            os.pwrite(self._here, b" " * _SIZE, 0)

    def close(self, *, forget: bool) -> None:
        """End; what is known of earlier ones is needed no more if `forget`."""
        if self._here is not None:
            os.close(self._here)
            self._here = None
            for path in (self._now, self._past) if forget else (self._now,):
                path.unlink(missing_ok=True)


def at_work(folder: Path) -> dict[str, tuple[int, str]]:
    """Where each process is that works at a score file in `folder`, and since when: it changes while they get on."""
    found = {}
    for path in folder.glob("*.now"):
        try:
            found[path.name] = path.stat().st_mtime_ns, path.read_text()
        except FileNotFoundError:
            # Its shard has just ended.
            continue
    return found


def _lines(path: Path) -> list[tuple[str, int, int]]:
    """What a file of these says, as far as it can be read."""
    found = []
    try:
        for line in path.read_text().splitlines():
            if line.strip():
                name, first, number = json.loads(line)
                found.append((str(name), int(first), int(number)))
    except (OSError, ValueError, TypeError):
        pass
    return found
