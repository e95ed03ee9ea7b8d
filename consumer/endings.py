"""How a run can end: one table of causes, and `status.json`, in which the first rank that knows the cause writes it.

torchrun turns every code but 0 into 1, so what starts runs reads `<run.dir>/status.json` and not the exit code:

    {"cause": "preempted", "code": 143, "requeue": true, "step": 1200, "rank": 3, "host": ..., "message": ..., ...}

Standard library only: the watching process (watch_process.py) starts in a moment and stays small.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

STATUS = "status.json"

# Bytes of status.json, filled up with blanks: one block, which can be overwritten in place when the disk is full.
_BLOCK = 4096
_MESSAGE = 2000  # characters of a message that are kept
_SKEW_S = 2.0  # by which clocks of machines may differ
_LOCK_S = 2.0


class Cause(StrEnum):
    """Why a run ended."""

    RUNNING = "running"
    DONE = "done"
    INTERRUPTED = "interrupted"
    PREEMPTED = "preempted"
    SAVED = "saved on request"
    SETTING = "wrong setting"
    NUMBERS = "bad numbers"
    NO_PROGRESS = "no progress"
    MEMORY = "out of memory"
    DISK = "disk full"
    STARVATION = "data starvation"
    HANG = "hang"
    PEER = "peer lost"
    DAMAGE = "damaged state"
    CORRUPTION = "silent corruption"
    BUG = "bug"


@dataclass(frozen=True)
class Ending:
    """What a cause means for whoever starts runs."""

    code: int  # of the process; 128 + n where signal n asked for the end
    requeue: bool  # True: start the same command again, nobody needs to look first
    meaning: str


# 1 is Python's for a traceback (and torchrun's for everything), 2 is for what a person set; ours start at 80.
ENDINGS: dict[Cause, Ending] = {
    Cause.RUNNING: Ending(137, True, "still going, or ended without a word: SIGKILL to all of it, power, network"),
    Cause.DONE: Ending(0, False, "all steps are trained and saved"),
    Cause.INTERRUPTED: Ending(130, False, "SIGINT (Ctrl-C): saved at the step's end unless the message says otherwise"),
    Cause.PREEMPTED: Ending(143, True, "SIGTERM: saved at the step's end unless the message says otherwise"),
    Cause.SAVED: Ending(138, True, "SIGUSR1: saved at the step's end unless the message says otherwise"),
    Cause.SETTING: Ending(2, False, "a setting or an input is wrong; the message names it and the fix"),
    Cause.NUMBERS: Ending(80, False, "NaN or infinity in loss or gradients of too many steps"),
    Cause.NO_PROGRESS: Ending(81, False, "loss spikes came back after going back, or too many steps were skipped"),
    Cause.MEMORY: Ending(82, False, "a device or this machine has too little memory for these settings"),
    Cause.DISK: Ending(83, False, "no checkpoint could be written for too long: disk full, read-only or failing"),
    Cause.STARVATION: Ending(84, True, "no data in time: the producers are gone or too slow"),
    Cause.HANG: Ending(85, True, "a rank made no step in time; stacks-*.txt holds every rank's"),
    Cause.PEER: Ending(86, True, "a rank is gone: killed, crashed in native code, or cut off"),
    Cause.DAMAGE: Ending(87, False, "checkpoints are there and none of them is whole"),
    Cause.CORRUPTION: Ending(88, True, "ranks that must hold the same numbers do not; leave out the named host"),
    Cause.BUG: Ending(1, False, "an error nobody foresaw; its traceback is in the log"),
}

SIGNALLED = frozenset({Cause.INTERRUPTED, Cause.PREEMPTED, Cause.SAVED})

# Errors of ours and of libraries by the name of their class, so that nothing is imported for its sake. Any other named
# ValueError of ours is about what a person set or supplied.
_BY_NAME = {
    "OutOfMemoryError": Cause.MEMORY,
    "MemoryError": Cause.MEMORY,
    "PullError": Cause.STARVATION,
    "UnreachableError": Cause.STARVATION,
    "CheckpointError": Cause.DAMAGE,
    "_ElsewhereError": Cause.PEER,
    "UnitError": Cause.DAMAGE,
    "DistError": Cause.PEER,
    "ConnectionError": Cause.PEER,
    "KeyboardInterrupt": Cause.INTERRUPTED,
    "FileNotFoundError": Cause.SETTING,
    "FileExistsError": Cause.SETTING,
    "NotADirectoryError": Cause.SETTING,
    "IsADirectoryError": Cause.SETTING,
    "PermissionError": Cause.SETTING,
}
_OURS = frozenset({"consumer", "launch", "model", "parallel", "producer"})
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE})
# What gloo and the allocators say in a plain RuntimeError.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
_PEER_GONE = ("connection closed by peer", "connection reset by peer", "gloo/", "broken pipe", "socket timeout")


@dataclass(frozen=True)
class Start:
    """One start of a run: what all its processes agree on without talking, and when this one began."""

    id: str
    born: float  # seconds since the epoch

    @classmethod
    def here(cls) -> "Start":
        """Of this process. torchrun's ranks share its rendezvous; a process of its own is a start of its own."""
        env, born = os.environ, _born()
        if "RANK" not in env:
            return cls(f"{socket.gethostname()}/{os.getpid()}/{born:.2f}", born)
        names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_RESTART_COUNT")
        where = f"{env.get('MASTER_ADDR', '')}:{env.get('MASTER_PORT', '')}"
        return cls("/".join([*(env.get(name, "") for name in names), where]), born)


@dataclass(frozen=True)
class Status:
    """The content of status.json."""

    cause: Cause
    code: int
    requeue: bool
    step: int  # steps done
    rank: int  # whose ending it is
    host: str
    message: str
    time: float  # seconds since the epoch
    run: str  # id of the run, "" if it has none
    start: str  # which start of it ...
    born: float  # ... and when the process that ended began
    sure: bool  # False: a rank that only noticed that another is gone


def write_status(
    folder: Path,
    cause: Cause,
    *,
    step: int,
    message: str = "",
    rank: int | None = None,
    run: str = "",
    start: Start | None = None,
    sure: bool | None = None,
) -> bool:
    """Write `<folder>/status.json` unless this start already has a cause that stands; whether it was written.

    The first real cause stands. "running" gives way to all, "peer lost" to any fault and to who saw the peer die
    (`sure`); what an earlier start wrote gives way too. Never raises: it is called where something went wrong already.
    """
    start = start or Start.here()
    status = Status(
        cause=cause,
        code=ENDINGS[cause].code,
        requeue=ENDINGS[cause].requeue,
        step=step,
        rank=int(os.environ.get("RANK", "0")) if rank is None else rank,
        host=socket.gethostname(),
        message=message[:_MESSAGE],
        time=time.time(),
        run=run,
        start=start.id,
        born=start.born,
        sure=cause is not Cause.PEER if sure is None else sure,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            old = read_status(folder)
            if old and not (_gives_way(old, status) if _same(old, start) else start.born >= old.born):
                return False  # it stands, or a later start has begun
            _replace(folder / STATUS, json.dumps(asdict(status), indent=1))
    except OSError as error:
        log.error("%s: not written: %s; it would say %s", folder / STATUS, error, json.dumps(asdict(status)))
        return False
    return True


def in_time(act: Callable[[], object], seconds: float) -> bool:
    """Run `act` beside and wait so long: a file system that answers no more must hold up nobody's end."""
    thread = threading.Thread(target=act, name="in time", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def read_status(folder: Path) -> Status | None:
    """What the run in `folder` ended with; None if nothing readable is there."""
    try:
        said: dict[str, Any] = json.loads((folder / STATUS).read_text())
        return Status(**said | {"cause": Cause(said["cause"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def classify(error: BaseException) -> Cause:
    """The cause that an error stands for. A class may say it itself in an attribute `cause`."""
    said = getattr(error, "cause", None)
    if isinstance(said, Cause):
        return said
    if isinstance(error, SystemExit):
        return _by_code(error.code)
    text = str(error).lower()
    if any(_full(link) for link in _chain(error)):
        return Cause.DISK
    if isinstance(error, RuntimeError) and any(part in text for part in _OUT_OF_MEMORY):
        return Cause.MEMORY
    for kind in type(error).__mro__:
        if kind.__name__ in _BY_NAME:
            return _BY_NAME[kind.__name__]
    if isinstance(error, RuntimeError) and any(part in text for part in _PEER_GONE):
        return Cause.PEER
    ours = type(error).__module__.split(".")[0] in _OURS
    return Cause.SETTING if ours and isinstance(error, ValueError) else Cause.BUG


def cause_of_signal(number: int) -> Cause:
    """Of an end that signal `number` asked for."""
    return _by_code(128 + number)


def _by_code(code: object) -> Cause:
    found = [cause for cause, ending in ENDINGS.items() if ending.code == (code or 0)]
    return found[0] if found else Cause.BUG


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _DISK


def _same(old: Status, start: Start) -> bool:
    """Whether this start wrote `old`. Fixed ports give two starts by hand one id; the time tells them apart."""
    return old.start == start.id and old.time >= start.born - _SKEW_S


def _gives_way(old: Status, new: Status) -> bool:
    if old.cause is Cause.RUNNING:
        return True
    if old.cause is not Cause.PEER:
        return False
    if new.cause in (Cause.PEER, Cause.HANG):
        return new.sure and not old.sure  # others hang because a peer is gone
    return new.cause not in SIGNALLED  # those are the launcher clearing up


def _replace(path: Path, text: str) -> None:
    block = text.encode().ljust(_BLOCK - 1) + b"\n"
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        aside.write_bytes(block)  # no fsync: it would wait for all that a checkpoint is writing
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not path.exists():
            raise
        with path.open("r+b") as file:  # its block is there already
            file.write(block)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One writer at a time, as far as the file system knows locks; a lock that cannot be had stops nobody."""
    try:
        held = os.open(folder / f".{STATUS}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        yield
        return
    try:
        end = time.monotonic() + _LOCK_S
        while time.monotonic() < end:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                    break
                time.sleep(0.01)
        yield
    finally:
        os.close(held)


def _born() -> float:
    """When this process began: nothing that its start wrote can be older."""
    try:
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return _IMPORTED
    return time.time() - age


_IMPORTED = time.time()
