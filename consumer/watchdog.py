"""A rank's side of the hang watchdog: beats into shared memory, and stacks on demand.

A beat is one write of some hundred bytes; whoever watches (watch_process.py) is another process, since in this one a
C call that holds the GIL would stop it too.
"""

import faulthandler
import hashlib
import mmap
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, Field

from consumer.endings import Start
from consumer.watch_process import STACKS, Beat, Orders, process

# Phases that may take as long as a start.
SLOW = frozenset({"start", "preflight", "load", "compile", "save", "validation", "pictures", "end"})

# The ranks decide what a signal to the job means; their watcher ends with them.
_RANKS_OWN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, STACKS)

_SHARED = Path("/dev/shm")
_CLOSE_S = 1.0


class WatchdogError(ValueError):
    """The folder for the beats is not this user's own."""


class WatchdogConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """How long a rank may take from one beat to the next."""

    hang_s: float = Field(default=450.0, ge=0)  # in a step: over pull.wait_s, below mesh.timeout_s; 0: no watchdog
    start_s: float = Field(default=1800.0, gt=0)  # until a step is done, and in the phases of SLOW
    grace_s: float = Field(default=5.0, ge=0)  # from SIGTERM to SIGKILL for ranks that hang


class Watchdog:
    """One a rank, from before the mesh is made until the process ends; the machine's first rank starts the watcher.

    `out` gets `stacks-*.txt` and `status.json`. Raises WatchdogError if somebody else's folder is in the way.
    """

    def __init__(self, config: WatchdogConfig, out: Path, run: str = "") -> None:
        self.config, self._count, self._step, self._order = config, 0, -1, 0
        self._stepped = False  # the first step compiles, and fills what is cached
        self._page: mmap.mmap | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        if not config.hang_s:
            return
        env = os.environ
        folder = _private(out)
        self._rank = int(env.get("RANK", "0"))
        found = process(os.getpid())
        assert found is not None, "this process is in /proc"
        self._pid, self._born = os.getpid(), found[1]
        self._stacks = (folder / f"rank-{self._rank}.stacks").open("w")
        faulthandler.register(STACKS, self._stacks, all_threads=True)
        self._page = _page(folder, self._rank, self._beat("start"))
        if int(env.get("LOCAL_RANK", "0")) == 0 or "LOCAL_WORLD_SIZE" not in env:
            ranks = int(env.get("LOCAL_WORLD_SIZE", "1"))
            self._watcher = _watch(Orders(folder, out.absolute(), ranks, config.grace_s, run, Start.here()))

    def beat(self, phase: str, step: int | None = None) -> None:
        """This rank is alive and enters `phase`; `step` is the number of steps done and holds until another is said."""
        if self._page is not None:
            if step is not None and step != self._step:
                self._stepped = self._stepped or 0 <= self._step == step - 1
                self._step, self._order = step, 0
            self._page[: Beat.SIZE] = self._beat(phase).pack()

    def close(self) -> None:
        """Watch no more: the last thing that a rank does."""
        if self._page is None:
            return
        self._page[: Beat.SIZE] = replace(self._beat("end"), ended=True).pack()
        faulthandler.unregister(STACKS)
        signal.signal(STACKS, signal.SIG_IGN)  # its default would end what just ended well
        self._stacks.close()
        self._page.close()
        self._page = None
        if self._watcher is not None:
            try:
                self._watcher.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                self._watcher.returncode = 0  # other ranks are still watched; it ends with them

    def _beat(self, phase: str) -> Beat:
        limit = self.config.hang_s if self._stepped and phase not in SLOW else self.config.start_s
        self._count, self._order = self._count + 1, self._order + 1
        now = time.monotonic()
        return Beat(self._count, self._pid, self._born, self._step, self._order, now, limit, False, phase)


def _private(out: Path) -> Path:
    """The folder in which the ranks of this machine and start meet their watcher; they agree on it without talking."""
    root = _SHARED if os.access(_SHARED, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    env = os.environ
    start = (os.getppid(), env.get("MASTER_PORT"), env.get("TORCHELASTIC_RESTART_COUNT"))
    parts = (socket.gethostname(), out.absolute(), *(start if "LOCAL_WORLD_SIZE" in env else (os.getpid(),)))
    name = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).hexdigest()
    folder = root / f"inkstone-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise WatchdogError(f"{folder}: is not a folder of this user alone; remove it, or set watchdog.hang_s=0")
    return folder


def _page(folder: Path, rank: int, beat: Beat) -> mmap.mmap:
    """A shared page with a first beat in it."""
    aside = folder / f"rank-{rank}.new"
    with aside.open("w+b") as file:
        os.posix_fallocate(file.fileno(), 0, mmap.PAGESIZE)  # now an error; later, with no memory left, a SIGBUS
        page = mmap.mmap(file.fileno(), mmap.PAGESIZE)
    page[: Beat.SIZE] = beat.pack()
    os.replace(aside, folder / f"rank-{rank}")
    return page


def _watch(orders: Orders) -> "subprocess.Popen[bytes]":
    """Start the watcher in a session of its own: no terminal and no killed process group takes it along."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", ""))))
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _RANKS_OWN)  # which it inherits
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "consumer.watch_process", orders.dump()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": path},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
