"""One writer at a time for a folder: an advisory lock that the kernel drops when its holder dies."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.1


class LockError(ValueError):
    """Somebody else holds the lock; the message names the file and the wait."""


@contextmanager
def exclusive(path: Path, *, timeout_s: float) -> Iterator[None]:
    """Hold the lock file at `path`, waiting up to `timeout_s` for whoever has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LockError(f"{path}: held by another process for {timeout_s:g} s; end that one") from None
                time.sleep(_POLL_S)
        yield
