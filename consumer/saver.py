"""Saving while training goes on: a thread copies and writes, one rename publishes when all ranks have written.

Ranks agree through one number each in the step's max all-reduce, so none ever waits for a disk: `said` before it,
`heard` after it. A save that fails on any rank is given up by all; training goes on and it is tried again until it
succeeds or has failed for too long.
"""

import enum
import errno
import json
import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from consumer import shelf
from consumer.config import CheckpointConfig
from consumer.ema import Ema
from consumer.endings import Cause
from consumer.pieces import CheckpointError, Index
from consumer.snapshot import CalledOffError, Snapshot
from parallel.engine import Engine
from parallel.mesh import Mesh

log = logging.getLogger(__name__)

# Between two looks at a save that is waited for.
_POLL_S = 0.005
# For the thread to end when a job does; a write notices within one chunk, a sync to a dead file server never.
_CLOSE_S = 5.0


class UnwritableError(CheckpointError):
    """Checkpoints could not be written for too long."""

    cause = Cause.DISK


@dataclass(frozen=True)
class SaveReport:
    """How a save ended, the same on every rank but for the times."""

    step: int
    published: bool
    why: str  # it was not published
    stall_s: float  # for which training waited
    seconds: float  # from its start to its end
    nbytes: int  # of this rank


class Said(enum.IntEnum):
    """What a rank says in the step's max all-reduce."""

    NOTHING = 0
    DUE = 1  # rank 0: it is time to try again
    BUSY = 2
    FAILED = 3
    HOPELESS = 4  # it failed for too long


class _Stage(enum.Enum):
    """Where the save in flight is, the same on every rank."""

    IDLE = enum.auto()
    WRITING = enum.auto()
    PUBLISHING = enum.auto()
    STOPPING = enum.auto()  # it failed somewhere: until no rank writes any more
    CLEARING = enum.auto()


class Saver:
    """Saves checkpoints on every rank; all ranks call the same methods in the same order.

    What is saved is copied beside the next step's forward and backward: call `taken` before anything changes the
    weights, the moments or the average. One save is in flight at most. One that falls due meanwhile is taken at the
    first step after it (`due`); a `save` that is called all the same waits for it. `beat` is called while anything is
    waited for.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        engine: Engine,
        ema: Ema | None,
        mesh: Mesh,
        resolved: dict[str, Any],
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self._engine, self._mesh, self._resolved, self._beat = config, engine, mesh, resolved, beat
        self._snapshot, self._shapes = Snapshot(engine, ema, mesh), engine.shapes
        self._writer = _Writer()
        self._stage, self._step, self._aside = _Stage.IDLE, 0, config.path
        self._called_off, self._taken = threading.Event(), threading.Event()
        self._taken.set()
        self._stage_began = self._began = self._retry_at = time.monotonic()
        self._failing_since: float | None = None
        self._why = ""
        self._owed = self._try_again = False
        self._stall_s, self._attempts = 0.0, 0
        if mesh.rank == 0:
            shelf.clear(config.path)
        # A name that no rank of an earlier start still writes to; and nobody writes before all is cleared.
        self._start = int(mesh.max(torch.tensor([time.time_ns() // 1_000_000], device=mesh.device)).item())

    def due(self, step: int) -> bool:
        """Whether to save after `step` steps: at every `every`-th, or now that one put off or failed fits."""
        self._owed |= step % self.config.every == 0
        if self._stage is not _Stage.IDLE:
            return False
        return self._owed if self._failing_since is None else self._try_again

    def save(self, step: int, extra: dict[str, Any], wait: bool = False) -> SaveReport | None:
        """Save as of now, after `step` steps. With `wait` return when it is published, else at once.

        `extra` is kept as JSON, rank 0's. With `wait` it is tried until it succeeds; raises UnwritableError, on every
        rank, after `give_up_s` of failing.
        """
        report = self.settle()
        if report and report.published and report.step == step:
            return report
        kept = json.loads(json.dumps(extra))  # as it is now
        self._begin(step, kept)
        while wait:
            report = self.settle()
            assert report
            if report.published:
                return report
            while not self._try_again:
                self._round()
            self._begin(step, kept)
        return None

    def taken(self) -> None:
        """Wait until what the last `save` saves is copied; weights, moments and average may change then."""
        began = time.monotonic()
        while not self._taken.wait(_POLL_S) and time.monotonic() - began < self.config.write_s:
            self._beat()
        self._stall_s += time.monotonic() - began

    def said(self) -> int:
        """This rank's part of the step's max all-reduce."""
        now, busy = time.monotonic(), self._writer.busy
        late = busy and now - self._stage_began > self.config.write_s
        if self._stage in (_Stage.WRITING, _Stage.PUBLISHING):
            if self._writer.error or late:
                return Said.FAILED
            return Said.BUSY if busy else Said.NOTHING
        if busy:
            return Said.HOPELESS if late else Said.BUSY
        if self._stage is not _Stage.IDLE or self._mesh.rank or self._failing_since is None:
            return Said.NOTHING
        if now - self._failing_since >= self.config.give_up_s:
            return Said.HOPELESS
        return Said.DUE if now >= self._retry_at else Said.NOTHING

    def heard(self, worst: int) -> SaveReport | None:
        """Act on the largest of what the ranks said; how the save in flight ended, if it did.

        Raises UnwritableError on every rank once saving has failed for `give_up_s`.
        """
        if worst == Said.HOPELESS:
            raise UnwritableError(
                f"{self.config.path}: no checkpoint for {self.config.give_up_s:g} s (checkpoint.give_up_s) after one "
                f"failed: {self._why}; make room or mend it, and start again"
            )
        self._try_again = worst == Said.DUE
        if worst == Said.FAILED:
            return self._failed()
        if worst == Said.BUSY or self._stage is _Stage.IDLE:
            return None
        if self._stage is _Stage.WRITING:
            self._enter(_Stage.PUBLISHING, self._publish)
            return None
        if self._stage is _Stage.STOPPING:
            self._enter(_Stage.CLEARING, self._clear)
            return None
        cleared = self._stage is _Stage.CLEARING
        self._enter(_Stage.IDLE)
        if cleared:
            return None
        if self._failing_since is not None and self._mesh.rank == 0:
            log.warning("checkpoint of step %d written: saving works again", self._step)
        self._failing_since, self._try_again = None, False
        return self._report("")

    def settle(self) -> SaveReport | None:
        """Wait until no save is in flight, on every rank; how the one that was ended."""
        report = None
        while self._stage is not _Stage.IDLE:
            report = self._round() or report
        return report

    def close(self) -> None:
        """Give up what is in flight, on this rank alone and within seconds; what is published stays."""
        self._called_off.set()
        if not self._writer.close(_CLOSE_S):
            log.warning("%s: still being written; the next start clears it away", self._aside)
            return
        if self._mesh.rank == 0 and self._stage is not _Stage.IDLE:
            shutil.rmtree(self._aside, ignore_errors=True)
        self._snapshot.close()

    def _round(self) -> SaveReport | None:
        """What a step does for a save, when no step does."""
        self._beat()
        worst = self._mesh.max(torch.tensor([self.said()], device=self._mesh.device))
        report = self.heard(int(worst.item()))
        if report is None:
            time.sleep(_POLL_S)
        return report

    def _begin(self, step: int, extra: dict[str, Any]) -> None:
        self._began = time.monotonic()
        self._snapshot.mark()
        self._owed = self._try_again = False
        self._step, self._attempts = step, self._attempts + 1
        self._aside = shelf.aside(self.config.path, step, f"{self._start}-{self._attempts}")
        self._head = Index(step, self._engine.updates, self._resolved, extra, {}, self._shapes, ())
        self._called_off, self._taken = threading.Event(), threading.Event()
        folder, called_off, taken, updates = self._aside, self._called_off, self._taken, self._engine.updates

        def write() -> None:
            try:
                self._snapshot.take()
                assert self._engine.updates == updates, "weights changed while they were copied: call taken() before"
            finally:
                taken.set()
            self._snapshot.write(folder, called_off)

        self._enter(_Stage.WRITING)
        self._writer.do(write)
        self._stall_s = time.monotonic() - self._began

    def _enter(self, stage: _Stage, job: Callable[[], None] | None = None) -> None:
        """Go to the next stage, in which rank 0's thread does `job`."""
        self._stage, self._stage_began = stage, time.monotonic()
        if job and self._mesh.rank == 0:
            self._writer.do(job)

    def _publish(self) -> None:
        shelf.publish(self._aside, shelf.folder(self.config.path, self._step), self._head, self._mesh.world)
        shelf.prune(self.config.path, _retention(self.config), self._step)

    def _clear(self) -> None:
        try:
            if self._aside.exists():
                shutil.rmtree(self._aside)
        except OSError as error:
            log.warning("%s: half-written, not removed: %s", self._aside, error.strerror)

    def _failed(self) -> SaveReport:
        """Call the save off on every rank; the next try is rank 0's to ask for."""
        self._why = f"{self._aside}: {self._reasons()}"
        self._called_off.set()
        now = time.monotonic()
        self._failing_since = now if self._failing_since is None else self._failing_since
        self._retry_at, self._owed = now + self.config.retry_s, False
        self._enter(_Stage.STOPPING)
        if self._mesh.rank == 0:
            left = max(0.0, self.config.give_up_s - (now - self._failing_since))
            log.warning(
                "checkpoint of step %d not written: %s; next try in %g s, given up in %.0f s",
                self._step,
                self._why,
                self.config.retry_s,
                left,
            )
        return self._report(self._why)

    def _reasons(self) -> str:
        """Which rank could not write and why, the same on every rank."""
        codes = torch.zeros(self._mesh.world, dtype=torch.int64, device=self._mesh.device)
        if self._writer.error:
            codes[self._mesh.rank] = self._writer.error
        elif self._writer.busy and time.monotonic() - self._stage_began > self.config.write_s:
            codes[self._mesh.rank] = errno.ETIME
        found = {rank: code for rank, code in enumerate(self._mesh.max(codes).tolist()) if code}
        first = min(found, default=0)
        others = f" ({len(found)} ranks failed)" if len(found) > 1 else ""
        return f"rank {first}: {os.strerror(found.get(first, errno.EIO))}{others}"

    def _report(self, why: str) -> SaveReport:
        seconds = time.monotonic() - self._began
        return SaveReport(self._step, not why, why, self._stall_s, seconds, self._snapshot.nbytes)


class _Writer:
    """A thread that does one job after the other. `error` is the errno of the last that failed, 0 after a new one."""

    def __init__(self) -> None:
        self.error = 0
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock, self._left = threading.Lock(), 0
        # A daemon: a write to a dead file server must not keep the process.
        self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a job is not done yet."""
        return self._left > 0

    def do(self, job: Callable[[], None]) -> None:
        """Have `job` done."""
        with self._lock:
            self._left += 1
            self.error = 0
        self._jobs.put(job)

    def close(self, deadline_s: float) -> bool:
        """End the thread after the jobs it has; False if it did not within the deadline."""
        self._jobs.put(None)
        self._thread.join(deadline_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while job := self._jobs.get():
            error = 0
            try:
                job()
            except CalledOffError:
                pass
            except OSError as wrong:
                log.info("%s", wrong)
                error = wrong.errno or errno.EIO
            except Exception:
                log.exception("a bug in saving a checkpoint")
                error = errno.EIO
            with self._lock:
                self.error = self.error or error  # before it is no longer busy
                self._left -= 1


def _retention(config: CheckpointConfig) -> shelf.Retention:
    """Which checkpoints stay."""
    return shelf.Retention(config.keep, config.keep_every, config.max_age_h)
