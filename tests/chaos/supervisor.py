"""Starts the processes of a run, restarts those that die as Ray would, and strikes them with faults on schedule."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from producer.api.channel import Channel, RefusedError, UnreachableError, write_registry
from producer.api.local import sweep
from producer.cache import fill
from producer.index import Index
from producer.proposal import apply
from tests.chaos import child
from tests.chaos.child import DONE, NO_PORT, TOKEN, Course, Place
from tests.chaos.faults import Fault
from tests.chaos.link import Link
from tests.chaos.maker import COST, SEED, Job

T = TypeVar("T")

WORKERS = 2
MOST_WORKERS = 5
RESTART_S = (0.1, 0.8)
STUCK_S = 120.0  # without a step of the trainer although nothing is held back any longer
SWITCH_S = 120.0
END_S = 40.0  # for those told to end, on a busy machine
_TICK_S, _SAMPLE_S = 0.02, 0.25
_PIECE = 1 << 14


class ChaosError(AssertionError):
    """A run did something that no fault excuses."""


@dataclass
class Child:
    name: str
    role: str
    process: Any
    link: Link | None
    leaving: bool = False  # not to be started again
    struck: bool = False  # its end is our doing


@dataclass
class Seen:
    """What was measured over a run."""

    struck: list[str] = field(default_factory=list)
    starts: Counter[str] = field(default_factory=Counter)
    rss: dict[str, int] = field(default_factory=dict)  # peak bytes, by role
    descriptors: dict[str, int] = field(default_factory=dict)
    ahead: int = 0  # peak bytes that the coordinator counts
    cache: int = 0  # peak bytes on disk
    own: int = 0  # workers that a sample ended
    full: int = 0  # looks at the disk that found it full
    courses: list[tuple[int, int]] = field(default_factory=list)  # of the trainer's starts: the step, the groups


class Supervisor:
    """One run in `folder`, which `run` starts and ends. `tmpfs`: the job's disk is one of its own and can be filled."""

    def __init__(
        self,
        folder: Path,
        job: Job,
        faults: Sequence[Fault],
        *,
        seed: int,
        steps: int,
        tmpfs: bool,
        checkpoint_every: int = 5,
        any_checkpoint: bool = False,
        pace_s: float = 0.02,
    ) -> None:
        self.place, self.job, self.steps, self.tmpfs = Place(folder), job, steps, tmpfs
        self.every, self.any_checkpoint, self.pace_s = checkpoint_every, any_checkpoint, pace_s
        self.seen = Seen()
        self._faults = list(faults)
        self._draw = random.Random(seed + 1)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.chaos.child"])
        self._children: dict[str, Child] = {}
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._names = self._incarnation = 0
        self._port = 0
        self._ballast: set[Path] = set()
        self._switches: list[threading.Thread] = []
        self._refused: list[str] = []
        self._done = False
        self._progress, self._moved, self._sampled = 0, time.monotonic(), 0.0
        self._ledger_read = 0

    def run(self) -> Seen:
        """The whole training. ChaosError if something ended that nobody struck, stood still or would not end."""
        for path in (self.place.checkpoints, self.place.log(""), self.place.token):
            (path if path == self.place.checkpoints else path.parent).mkdir(parents=True, exist_ok=True)
        self.place.token.write_text(TOKEN)
        try:
            self._start_coordinator(move=True)
            for _ in range(WORKERS):
                self._join()
            self._start_trainer()
            while not self._done:
                self._tick()
                time.sleep(_TICK_S)
            if self._faults:
                raise ChaosError(f"these never struck: {self._faults}")
            for switch in self._switches:
                switch.join(SWITCH_S)
            if any(switch.is_alive() for switch in self._switches) or self._refused:
                raise ChaosError(f"a recipe was not taken: {self._refused}")
            self._heal()
            self._end()
        finally:
            self._kill_all()
            self.place.registry.unlink(missing_ok=True)
            sweep()
        return self.seen

    # The course of things.

    def _tick(self) -> None:
        now = time.monotonic()
        due = [action for when, action in self._later if when <= now]
        self._later = [(when, action) for when, action in self._later if when > now]
        for action in due:
            action()
        self._reap()
        self._read_progress(now)
        if self._faults and self._faults[0].step <= self._progress and self._strike(self._faults[0]):
            self.seen.struck.append(self._faults.pop(0).kind)
        if self._ballast:
            self._fill()
        if now - self._sampled > _SAMPLE_S:
            self._sampled = now
            self._sample()
        if now - self._moved > STUCK_S:
            raise ChaosError(f"no step after {self._progress} for {STUCK_S:.0f} s\n{self._logs()}")

    def _read_progress(self, now: float) -> None:
        """The trainer's step: lines of its ledger, the highest counts."""
        try:
            with self.place.ledger.open("rb") as file:
                file.seek(self._ledger_read)
                raw = file.read()
        except FileNotFoundError:
            return
        whole = raw[: raw.rfind(b"\n") + 1]
        self._ledger_read += len(whole)
        for line in whole.splitlines():
            self._moved = now
            self._progress = max(self._progress, int(json.loads(line)["step"]) + 1)

    def _reap(self) -> None:
        for one in list(self._children.values()):
            if one.process.is_alive():
                continue
            one.process.join()
            code = one.process.exitcode
            del self._children[one.name]
            if one.link:
                one.link.close()
            own = one.role == "worker" and self.job.deadly and code == -signal.SIGKILL
            self.seen.own += bool(own) and not one.struck
            if code not in (DONE, NO_PORT) and not one.struck and not own:
                raise ChaosError(f"{one.name} ended by itself with {code}\n{self._logs(one.name)}")
            if one.role == "trainer" and code == DONE:
                self._done = True
            elif not one.leaving:
                again = {"coordinator": self._start_coordinator, "trainer": self._start_trainer}.get(one.role)
                self._after(self._draw.uniform(*RESTART_S), again or (lambda name=one.name: self._start_worker(name)))

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, action))

    # Starting.

    def _start(self, name: str, role: str, link: Link | None, *arguments: object) -> None:
        entry = getattr(child, role)
        given = (str(self.place.folder), self.job.model_dump_json(), name, *arguments)
        process = self._context.Process(target=entry, args=given, name=name, daemon=True)
        process.start()
        self._children[name] = Child(name, role, process, link)
        self.seen.starts[role] += 1

    def _start_coordinator(self, move: bool = False) -> None:
        # A port that others have taken meanwhile would never be free again.
        link = Link() if move else None
        try:
            link = link or Link(self._port)
        except OSError:
            link = Link()
        self._port = link.port
        write_registry(self.place.registry, link.address)
        self._start("coordinator", "coordinator", link, link.port)

    def _join(self) -> None:
        self._start_worker(f"worker-{self._names}")
        self._names += 1

    def _start_worker(self, name: str) -> None:
        link = Link()
        self._start(name, "worker", link, link.port)

    def _start_trainer(self) -> None:
        kept = sorted(int(path.name) for path in self.place.checkpoints.iterdir() if not path.name.startswith("."))
        start = 0 if not kept else self._draw.choice([0, *kept]) if self.any_checkpoint else kept[-1]
        groups = self._draw.choice([count for count in (1, 2, 4) if self.job.units % count == 0])
        self._incarnation += 1
        self.seen.courses.append((start, groups))
        course = Course(self._incarnation, start, self.steps, groups, self.every, self.pace_s)
        self._start("trainer", "trainer", None, tuple(course))

    # Striking.

    def _strike(self, fault: Fault) -> bool:
        """Whether there was something to strike; otherwise it is tried again."""
        act, _, what = fault.kind.partition(" ")
        if fault.kind == "fill disk":
            return self._fill_disk(fault.seconds)
        if fault.kind == "damage cache":
            return self._damage(fault.aim)
        if act == "switch":
            self._switches.append(threading.Thread(target=self._switch, args=(len(self._switches),), daemon=True))
            self._switches[-1].start()
            return True
        if act == "join":
            if sum(one.role == "worker" for one in self._children.values()) < MOST_WORKERS:
                self._join()
            return True
        role = {"link": "", "": "worker"}.get(what, what)
        targets = sorted(
            one.name
            for one in self._children.values()
            if (one.role == role or (not role and one.link)) and not one.struck and not one.leaving
        )
        if not targets:
            return False
        one = self._children[targets[int(fault.aim * len(targets))]]
        {
            "kill": self._kill,
            "restart": self._restart,
            "move": self._move,
            "leave": self._leave,
            "freeze": self._freeze,
            "stall": self._freeze,
            "slow": self._slow,
            "cut": self._cut,
            "reset": lambda one, _: one.link and one.link.reset(),
        }[act](one, fault.seconds)
        return True

    def _kill(self, one: Child, seconds: float) -> None:
        one.struck = True
        os.kill(one.process.pid, signal.SIGKILL)

    def _restart(self, one: Child, seconds: float) -> None:
        one.struck = True
        self._signal(one, signal.SIGTERM, signal.SIGCONT)

    def _move(self, one: Child, seconds: float) -> None:
        one.struck = one.leaving = True
        self._kill(one, seconds)
        self._after(self._draw.uniform(*RESTART_S), lambda: self._start_coordinator(move=True))

    def _leave(self, one: Child, seconds: float) -> None:
        if sum(each.role == "worker" and not each.leaving for each in self._children.values()) == 1:
            self._join()
        one.leaving = one.struck = True
        self._signal(one, signal.SIGTERM, signal.SIGCONT)

    def _freeze(self, one: Child, seconds: float) -> None:
        self._signal(one, signal.SIGSTOP)
        self._after(seconds, lambda: self._signal(one, signal.SIGCONT))

    def _slow(self, one: Child, seconds: float) -> None:
        self._mood(one, "slow", seconds)

    def _cut(self, one: Child, seconds: float) -> None:
        self._mood(one, "cut", seconds)

    def _mood(self, one: Child, mood: str, seconds: float) -> None:
        link = one.link
        assert link
        link.mood = mood
        self._after(seconds, lambda: setattr(link, "mood", "well"))

    def _signal(self, one: Child, *numbers: signal.Signals) -> None:
        # By its handle: another process may have its number by now.
        for number in numbers:
            if one.process.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.process.pid, number)

    def _damage(self, aim: float) -> bool:
        files = sorted(self.job.cache.rglob("*.arrow"))
        if not files:
            return False
        try:
            with files[int(aim * len(files))].open("r+b") as file:
                at = int(aim * 7919) % max(1, file.seek(0, os.SEEK_END))
                file.seek(at)
                old = file.read(1)
                file.seek(at)
                file.write(bytes([old[0] ^ 0x10]))
        except (OSError, IndexError):
            return False  # it was evicted meanwhile
        return True

    def _fill_disk(self, seconds: float) -> bool:
        if self.tmpfs:
            ballast = self.job.disk / f"ballast-{len(self.seen.struck)}"
            self._ballast.add(ballast)

            def empty() -> None:
                self._ballast.discard(ballast)
                ballast.unlink(missing_ok=True)

            self._after(seconds, empty)
            return True
        limited = [one for one in self._children.values() if one.role == "worker"]
        for one in limited:
            self._limit_files(one, 1)

        def lift() -> None:
            for one in limited:
                self._limit_files(one, resource.RLIM_INFINITY)

        self._after(seconds, lift)
        self.seen.full += 1
        return bool(limited)

    def _limit_files(self, one: Child, size: int) -> None:
        if one.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(one.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def _fill(self) -> None:
        """Take what is left of the disk, also what others gave back meanwhile."""
        for ballast in self._ballast:
            try:
                with ballast.open("ab", buffering=0) as file:
                    while True:
                        file.write(bytes(_PIECE))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                self.seen.full += 1

    def _switch(self, number: int) -> None:
        """Put another recipe in force from the next step on, whoever is dead at the moment."""
        end = time.monotonic() + SWITCH_S
        while time.monotonic() < end:
            try:
                apply(self._ask, self.job.changed(number), Index.open(self.job.index), seed=SEED, cost=COST)
                return
            except UnreachableError:
                time.sleep(0.2)
            except ValueError as error:
                if "added meanwhile" in str(error):
                    continue  # another switch came before this one, or this one did and the answer was lost
                if "in force already" not in str(error):
                    self._refused.append(str(error))
                return
        self._refused.append(f"not within {SWITCH_S:.0f} s")

    def _ask(self, kind: str, message: object, answer: type[T], /) -> T:
        channel = Channel(f"127.0.0.1:{self._port}", TOKEN)
        try:
            return channel.ask(kind, message, answer, 5.0)
        finally:
            channel.close()

    # Watching.

    def _sample(self) -> None:
        for one in self._children.values():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(one.process.pid)
                self.seen.rss[one.role] = max(self.seen.rss.get(one.role, 0), process.memory_info().rss)
                self.seen.descriptors[one.role] = max(self.seen.descriptors.get(one.role, 0), process.num_fds())
        self.seen.cache = max(self.seen.cache, fill(self.job.cache))
        status = self.status()
        if status:
            self.seen.ahead = max(self.seen.ahead, int(status["bytes_ahead"]))

    def status(self) -> dict[str, Any] | None:
        """What the coordinator says, if it says something."""
        channel = Channel(f"127.0.0.1:{self._port}", TOKEN)
        try:
            return dict(json.loads(channel.ask_raw("status", b"", 0.3)))
        except (UnreachableError, RefusedError):
            return None
        finally:
            channel.close()

    def _logs(self, name: str = "") -> str:
        """The ends of the logs, for people."""
        paths = sorted(self.place.log("").parent.iterdir()) if not name else [self.place.log(name)]
        return "\n".join(f"--- {path.stem}\n{path.read_text()[-3000:]}" for path in paths if path.exists())

    # The end.

    def _heal(self) -> None:
        for _, action in self._later:
            action()
        self._later = []
        self._reap()

    def _end(self) -> None:
        for one in self._children.values():
            one.struck = one.leaving = True
            self._signal(one, signal.SIGCONT, signal.SIGTERM)
        end = time.monotonic() + END_S
        while any(one.process.is_alive() for one in self._children.values()):
            if time.monotonic() > end:
                alive = [one.name for one in self._children.values() if one.process.is_alive()]
                raise ChaosError(f"{alive} did not end within {END_S:.0f} s of being told to\n{self._logs()}")
            time.sleep(_TICK_S)

    def _kill_all(self) -> None:
        for one in self._children.values():
            if one.process.is_alive():
                one.process.kill()
            one.process.join(10)
            if one.link:
                one.link.close()
        for ballast in self._ballast:
            ballast.unlink(missing_ok=True)
