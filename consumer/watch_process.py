"""Watches a machine's ranks from a process of its own, which a held GIL or a full collective cannot stop.

    python -m consumer.watch_process ORDERS        (JSON; consumer/watchdog.py starts it and writes the beats)

A rank whose beat is older than the limit it carries hangs: the stacks of all ranks of the machine go into one file,
`status.json` names the rank that is behind, and the ranks are ended. The launcher is left alone: torchrun may start
them again. It ends when its ranks have ended; standard library only.
"""

import json
import logging
import os
import shutil
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from consumer.endings import Cause, Start, in_time, write_status

log = logging.getLogger(__name__)

# faulthandler writes a rank's stacks on this signal, from C: no thread needs the GIL.
STACKS = signal.SIGUSR2

POLL_S = 0.1
_FROZEN_S = 1.0  # most that one poll adds to an age: a machine that was suspended hangs nobody
_ANSWER_S = 2.0  # for the stacks
_SETTLED_S = 0.1  # without another byte: a rank has written all of them
_KILLED_S = 5.0  # for a killed process to be gone
_WRITE_S = 5.0  # for what it writes: the file system may be what everything hangs on
_ABANDONED_S = 3600.0


@dataclass(frozen=True)
class Beat:
    """What a rank last said of itself."""

    count: int
    pid: int
    born: int  # the process's start, in the kernel's ticks: a pid alone may be another's by now
    step: int  # steps done; -1 before the first
    order: int  # beats since that step began: which phase of it this is
    time: float  # of the machine's monotonic clock
    limit_s: float  # for the next beat
    ended: bool
    phase: str

    _FORM = struct.Struct("<QqqqqddB64s")
    SIZE = _FORM.size + 4

    def pack(self) -> bytes:
        """With a checksum: who reads while it is written gets nothing instead of a mixture."""
        *fields, phase = vars(self).values()
        raw = self._FORM.pack(*fields, phase.encode()[:64])
        return raw + zlib.crc32(raw).to_bytes(4, "little")

    @classmethod
    def unpack(cls, raw: bytes) -> "Beat | None":
        """None for half of one."""
        body = raw[: cls._FORM.size]
        if len(raw) < cls.SIZE or zlib.crc32(body).to_bytes(4, "little") != raw[cls._FORM.size : cls.SIZE]:
            return None
        count, pid, born, step, order, at, limit_s, ended, phase = cls._FORM.unpack(body)
        said = phase.rstrip(b"\0").decode(errors="replace")
        return cls(count, pid, born, step, order, at, limit_s, bool(ended), said)


@dataclass(frozen=True)
class Orders:
    """What to watch, and where to write."""

    folder: Path  # the ranks' beats
    out: Path  # the run's folder
    ranks: int  # of this machine
    grace_s: float  # from SIGTERM to SIGKILL
    run: str
    start: Start

    def dump(self) -> str:
        paths = {"folder": str(self.folder), "out": str(self.out), "start": vars(self.start)}
        return json.dumps(vars(self) | paths)

    @classmethod
    def parse(cls, said: str) -> "Orders":
        raw = json.loads(said)
        return cls(**raw | {"folder": Path(raw["folder"]), "out": Path(raw["out"]), "start": Start(**raw["start"])})


class Rank:
    """A rank that is watched."""

    def __init__(self, number: int, page: Path, stack: Path) -> None:
        self.number, self.idle_s, self.lost = number, 0.0, False
        self._page, self._stack = os.open(page, os.O_RDONLY), os.open(stack, os.O_RDONLY)
        beat = Beat.unpack(os.pread(self._page, Beat.SIZE, 0))
        assert beat is not None, "a page is renamed into place when its first beat is in it"
        self.beat = beat
        # What is open needs no name: nothing is left behind however this ends.
        page.unlink()
        stack.unlink()

    def look(self, passed_s: float) -> None:
        """Read the last beat; `passed_s` since the last look."""
        beat = Beat.unpack(os.pread(self._page, Beat.SIZE, 0))
        if beat is None or beat.count == self.beat.count:
            self.idle_s += passed_s
        else:
            self.beat, self.idle_s = beat, 0.0

    @property
    def state(self) -> str:
        """The kernel's letter for the process (R, S, D, T ...), "" when it is gone."""
        found = process(self.beat.pid)
        return found[0] if found and found[1] == self.beat.born and found[0] not in "ZX" else ""

    @property
    def alive(self) -> bool:
        return bool(self.state)

    @property
    def stalled(self) -> bool:
        return not self.beat.ended and self.idle_s > self.beat.limit_s

    @property
    def stopped(self) -> bool:
        return self.state in ("T", "t")

    def signal(self, number: int) -> None:
        """Only to the process that registered."""
        if self.alive:
            try:
                os.kill(self.beat.pid, number)
            except ProcessLookupError:
                return

    def stacks(self) -> str:
        """What faulthandler has written so far."""
        return os.pread(self._stack, 1 << 20, 0).decode(errors="replace")

    def where(self) -> str:
        """For people."""
        state = {"T": ", stopped by a signal", "t": ", stopped by a debugger", "D": ", waiting in the kernel"}
        of_step = f" of step {self.beat.step}" if self.beat.step >= 0 else ""
        said = f"process {self.beat.pid} on {socket.gethostname()}{state.get(self.state, '')}"
        return f"rank {self.number} ({said}) in '{self.beat.phase}'{of_step}"


class Watch:
    """The ranks of one machine."""

    def __init__(self, orders: Orders) -> None:
        self.orders, self.ranks = orders, dict[int, Rank]()

    def look(self, passed_s: float) -> None:
        """Take in new ranks, read every beat, and write down a rank that ended without a word."""
        if len(self.ranks) < self.orders.ranks:
            self._take_in()
        for rank in self.ranks.values():
            dead = not rank.alive  # asked first: a rank says its last word before it ends
            rank.look(passed_s)
            if dead and not rank.beat.ended and not rank.lost:
                rank.lost = True
                said = f"{rank.where()} ended without a word: killed, out of memory, or crashed in native code"
                log.error("%s", said)
                self._status(Cause.PEER, rank, said)

    @property
    def over(self) -> bool:
        """Nobody is left to watch."""
        return bool(self.ranks) and all(rank.beat.ended or rank.lost for rank in self.ranks.values())

    @property
    def watched(self) -> list[Rank]:
        return [rank for rank in self.ranks.values() if not rank.beat.ended and not rank.lost]

    def behind(self) -> Rank:
        """The rank that the others most likely wait for: a stopped one, or the one in the earliest phase of all."""

        def place(rank: Rank) -> tuple[bool, int, int, float]:
            return not rank.stopped, rank.beat.step, rank.beat.order, rank.beat.time

        return min(self.watched, key=place)

    def end(self) -> None:
        """A hang: stacks, status, the end of all ranks of this machine."""
        self._ask_for_stacks()
        rank, name = (
            self.behind(),
            f"stacks-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{socket.gethostname()}.txt",
        )
        said = f"{rank.where()} made no step for {rank.idle_s:.1f} s, its limit is {rank.beat.limit_s:g} s"
        stacks, path = self._stacks(said), self.orders.out / name
        said += f"; stacks: {path}"
        log.error("%s", said)
        if not in_time(lambda: _write(path, stacks), _WRITE_S):
            log.error("%s: not written in %g s; it would say\n%s", path, _WRITE_S, stacks)
        if not any(other.lost for other in self.ranks.values()):  # else that is why the rest waits
            self._status(Cause.HANG, rank, said)
        for number, patience_s in ((signal.SIGTERM, self.orders.grace_s), (signal.SIGKILL, _KILLED_S)):
            for rank in self.ranks.values():
                rank.signal(number)
            if _until(lambda: not any(rank.alive for rank in self.ranks.values()), patience_s):
                return
        log.error("still there after SIGKILL: %s", [rank.where() for rank in self.ranks.values() if rank.alive])

    def _take_in(self) -> None:
        for page in self._pages():
            number = int(page.name.removeprefix("rank-"))
            self.ranks[number] = Rank(number, page, page.with_suffix(".stacks"))
        if len(self.ranks) == self.orders.ranks:
            shutil.rmtree(self.orders.folder, ignore_errors=True)

    def _pages(self) -> Iterator[Path]:
        try:
            names = sorted(self.orders.folder.iterdir())
        except FileNotFoundError:
            return
        yield from (path for path in names if path.name.startswith("rank-") and not path.suffix)

    def _ask_for_stacks(self) -> None:
        asked = [rank for rank in self.watched if not rank.stopped]  # a stopped process answers nothing
        for rank in asked:
            rank.signal(STACKS)
        since: dict[tuple[int, int], float] = {}  # when a rank's stacks reached a length

        def settled() -> bool:
            now = time.monotonic()
            sizes = [(rank.number, len(rank.stacks())) for rank in asked]
            return all(size[1] and now - since.setdefault(size, now) > _SETTLED_S for size in sizes)

        _until(settled, _ANSWER_S)

    def _stacks(self, said: str) -> str:
        parts = [f"{said}\n"]
        for _, rank in sorted(self.ranks.items()):
            why = "stopped, it cannot answer" if rank.stopped else "no answer" if rank.alive else "gone"
            where = f"{'ended: ' if rank.beat.ended else ''}{rank.where()}, for {rank.idle_s:.1f} s"
            parts.append(f"=== {where}\n{rank.stacks() or f'(no stacks: {why})'}\n")
        return "\n".join(parts)

    def _status(self, cause: Cause, rank: Rank, said: str) -> None:
        orders, step = self.orders, max(rank.beat.step, 0)

        def write() -> None:
            write_status(
                orders.out,
                cause,
                step=step,
                message=said,
                rank=rank.number,
                run=orders.run,
                start=orders.start,
                sure=True,
            )

        in_time(write, _WRITE_S)


def process(pid: int) -> tuple[str, int] | None:
    """State letter and start in ticks of a process; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return fields[0], int(fields[19])


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text)
        os.replace(aside, path)
    except OSError as error:
        log.error("%s: not written: %s; it would say\n%s", path, error, text)


def _until(fine: Callable[[], bool], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while not fine():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _sweep(mine: Path) -> None:
    """Remove folders of starts that were killed before their watcher ran: ranks that live have met long ago."""
    for other in mine.parent.glob(mine.name.rpartition("-")[0] + "-*"):
        try:
            if time.time() - other.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(other, ignore_errors=True)
        except OSError:
            continue


def main() -> None:
    """Watch until nobody is left."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    orders = Orders.parse(sys.argv[1])
    _sweep(orders.folder)
    watch, last = Watch(orders), time.monotonic()
    watch.look(0.0)
    while not watch.over and watch.ranks:
        time.sleep(POLL_S)
        now = time.monotonic()
        watch.look(min(now - last, _FROZEN_S))
        last = now
        if any(rank.stalled for rank in watch.watched):
            watch.end()
            break
    shutil.rmtree(orders.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
