"""One encoding worker: leases units, makes them, holds them in memory and serves them over Flight. Knows no Ray.

Three parts run at once: a thread that talks to the coordinator (asking for work is the heartbeat), a thread that makes
units, and the Flight server's own threads. What a unit is made of is the maker's business.
"""

import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from producer.api.channel import Access, Channel, RefusedError, RegistryError, UnreachableError
from producer.api.protocol import Answer, Failed, Granted, Lease, ProtocolError, Register, Registered, Welcome
from producer.api.unit import UnitId, header_of
from producer.follow import Follower
from producer.journal import Line
from producer.unit_server import Doors, Ring

log = logging.getLogger(__name__)

_CALL_S = 5.0  # the deadline of a call to the coordinator
_AWAY_S = 0.5  # the pause before the next try while the coordinator is away
_AWAY = (UnreachableError, RegistryError, RefusedError, ProtocolError)
_LEAVE_S = 0.1  # between looks at what a leaving worker still holds
_QUEUE = 2  # units leased at once: the one being made and the next
_NUMBERS_S = 2.0  # between two times that the counters are sent

# Two workers of a process may start within a tick of the clock.
_starts = itertools.count()


class MakerBrokenError(RuntimeError):
    """The maker can make nothing any longer: its process must begin anew."""


class Maker(Protocol):
    """Makes units. The same unit always comes out the same."""

    @property
    def offer(self) -> Welcome:
        """What the plan is."""

    def __call__(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
        """The unit and how many of its samples had to be left out (journaled by then).

        May raise anything: the unit is then tried again later, by another worker if there is one. After a
        MakerBrokenError the worker gives up.
        """

    def narrow(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
        """The same for a unit that ended earlier workers: a sample that ends this one too is known to the next."""

    def expect(self, units: Sequence[UnitId]) -> None:
        """These are wanted next, in this order: what takes no device may begin. Others are not, and let go."""

    def adopt(self, line: Line) -> None:
        """Make units of `line.from_step` and later by another recipe from now on; may take long, beside other calls."""

    def numbers(self) -> dict[str, float]:
        """Counters, of any thread's asking: seconds and samples by stage, samples left out by kind."""

    def close(self) -> None:
        """Let go of everything; what was not saved yet is saved."""


@dataclass(frozen=True)
class WorkerSetup:
    """`find` says where the coordinator is (host:port) and may raise RegistryError while it is starting."""

    name: str
    find: Callable[[], str]
    access: Access | str
    host: str = "127.0.0.1"
    port: int = 0
    advertise: str = ""  # the host that others are told, if another than `host`
    raw: int = 0  # the plain port; 0: any
    local: bool = False  # trainers of this user on this machine come in by a Unix socket
    memory_bytes: int = 4 << 30  # of units held; beyond it only units someone waits for are made
    stuck_s: float = math.inf  # in one unit until `give_up` is called: the device or a decoder hangs
    give_up: Callable[[], None] = lambda: None  # ends the process, since a thread that hangs cannot be ended


class Worker:
    """Runs from construction to `stop`."""

    def __init__(self, setup: WorkerSetup, maker: Maker) -> None:
        self._setup, self._maker = setup, maker
        self._ring = Ring(near=setup.local)
        self._doors = Doors(
            self._ring,
            host=setup.host,
            port=setup.port,
            access=setup.access,
            advertise=setup.advertise,
            local=setup.local,
            raw=setup.raw,
        )
        self.address = self._doors.address
        self._incarnation = time.time_ns() + next(_starts)
        self._follower = Follower(setup.name, maker.offer, lambda line: maker.adopt(line))
        self._queue: deque[UnitId] = deque()
        self._narrow: set[UnitId] = set()  # of the queue
        self._making: UnitId | None = None
        self._void = False  # `_making` is of a recipe that is not in force any longer
        self._since = time.monotonic()  # when `_making` was begun, or the last was done
        self._counts = {"units": 0.0, "samples": 0.0, "failed": 0.0, "making_seconds": 0.0, "idle_seconds": 0.0}
        self._told = -math.inf  # when the counters were last sent
        self._due = -math.inf  # when the coordinator is to hear of this one again
        self._alone = False  # `_making` is made sample by sample, with nothing begun beside it
        self._leaving = self._gone = False
        self._changed = False  # a unit was finished since the coordinator last heard
        self._state = threading.Condition()  # guards the queue; told of work, room and the end
        self._talk = threading.Lock()  # one message at a time, each saying how things are when it is sent
        self._channel: Channel | None = None
        self._stopped = False
        self._threads = [
            threading.Thread(target=part, name=f"{setup.name}-{part.__name__}", daemon=True)
            for part in (self._lease_loop, self._make_loop)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """End; a unit being made is left behind, and so are calls that do not end within `timeout_s`."""
        with self._state:
            self._stopped = True
            self._state.notify_all()
        end = time.monotonic() + timeout_s
        self._doors.shut(timeout_s)
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._follower.stop()
        self._maker.close()

    def leave(self, grace_s: float) -> None:
        """Begin no more units, serve those held until all are trained or for `grace_s`, hand back the rest, and end."""
        with self._state:
            self._leaving = self._changed = True
            self._queue.clear()
            self._state.notify_all()
        end = time.monotonic() + grace_s
        while time.monotonic() < end and (self._making or any(u.stream == "train" for u in self._ring.list()[0])):
            time.sleep(_LEAVE_S)
        self._gone = True
        try:
            self._heartbeat()
        except _AWAY as error:
            log.info("%s: leaves without a word: %s", self._setup.name, error)
        self.stop()

    def numbers(self) -> dict[str, float]:
        """Counters since the start: units and samples made, seconds spent on that and without work, and the maker's."""
        with self._state:
            counts = dict(self._counts)
            counts["making_seconds" if self._making else "idle_seconds"] += time.monotonic() - self._since
        return counts | self._ring.numbers() | self._maker.numbers()

    # Talking to the coordinator.

    def _lease_loop(self) -> None:
        said = ""
        while not self._stopped:
            pause = _AWAY_S
            self._look_at_clock()
            try:
                pause = self._heartbeat()
                said = ""
            except Exception as error:
                # Also what nobody foresaw: a worker that no longer speaks is lost.
                if str(error) != said:
                    log.warning("%s: %s", self._setup.name, error, exc_info=not isinstance(error, _AWAY))
                said = str(error)
                self._hang_up()
            self._rest(pause)

    def _rest(self, pause: float) -> None:
        """Until `pause` seconds after the coordinator was last spoken to, or sooner where it has not heard all."""
        self._due = time.monotonic() + pause
        with self._state:
            while not self._stopped and not self._changed and (left := self._due - time.monotonic()) > 0:
                self._state.wait(left)

    def _look_at_clock(self) -> None:
        with self._state:
            unit, seconds = self._making, time.monotonic() - self._since
        if unit and seconds > self._setup.stuck_s:
            log.error("%s: stuck in %s for %.0f s: giving up", self._setup.name, unit, seconds)
            self._setup.give_up()

    def _heartbeat(self) -> float:
        """Say what is here, obey the answer; the seconds until the next time."""
        with self._talk:
            lease = self._lease()
            granted = self._connect().ask("lease", lease, Granted, _CALL_S)
            self._obey(granted, lease)
        return granted.wait_s

    def _lease(self) -> Lease:
        """All that is here, and room for more."""
        now = time.monotonic()
        with self._state:
            self._changed = False
            encoding = (*((self._making,) if self._making and not self._void else ()), *self._queue)
        holding, size = self._ring.list() if not self._gone else ((), 0)
        # Units that may still be begun: what is being made will be held too.
        fit = (self._setup.memory_bytes - size) * max(1, len(holding)) // max(1, size) - len(encoding)
        return Lease(
            worker=self._setup.name,
            address=self.address,
            plan=self._follower.plan,
            until=self._follower.until,
            encoder=self._maker.offer.encoder,
            room=min(_QUEUE - len(encoding), max(1, fit)),
            full=fit <= 0,
            holding=holding,
            encoding=encoding,
            bytes=size,
            incarnation=self._incarnation,
            numbers=self.numbers() if now - self._told > _NUMBERS_S else {},
            leaving=self._leaving,
        )

    def _obey(self, granted: Granted, lease: Lease) -> None:
        """Do what the answer to `lease` says."""
        now = time.monotonic()
        self._told = now if lease.numbers else self._told
        self._due = now + granted.wait_s
        changed = self._follower.tell(granted.entries)
        for unit in (*granted.forget, *filter(changed, lease.holding)):
            self._ring.forget(unit)
        with self._state:
            self._void = self._void or bool(self._making and changed(self._making))
            keep = [unit for unit in self._queue if unit not in granted.forget and not changed(unit)]
            self._queue = deque(() if self._leaving else (*keep, *granted.units))
            self._narrow = {*self._narrow, *granted.narrow} & set(self._queue)
            self._expect()
            self._state.notify_all()

    def _expect(self) -> None:
        """Tell the maker what comes next, unless that must be made with nothing beside it."""
        if not self._stopped:
            self._maker.expect([] if self._narrow or self._alone else list(self._queue))

    def _connect(self) -> Channel:
        if self._channel is None:
            self._channel = Channel(self._setup.find(), self._setup.access)
        return self._channel

    def _hang_up(self) -> None:
        # The coordinator may be elsewhere by now: look again.
        with self._talk:
            if self._channel is not None:
                self._channel.close()
                self._channel = None

    # Making units.

    def _make_loop(self) -> None:
        while True:
            with self._state:
                while not self._queue and not self._stopped:
                    self._state.wait()
                if self._stopped:
                    return
                unit = self._begin()
            try:
                batch, rejected = self._maker.narrow(unit) if self._alone else self._maker(unit)
            except Exception as error:
                if self._stopped:
                    return
                log.exception("%s: %s could not be made", self._setup.name, unit)
                self._fail(unit, type(error).__name__)
                if isinstance(error, MakerBrokenError):
                    self._setup.give_up()
                continue
            self._register(unit, batch, rejected)

    def _begin(self) -> UnitId:
        """The next unit of the queue, from now on the one being made."""
        unit = self._queue.popleft()
        self._making, self._alone = unit, unit in self._narrow
        self._narrow.discard(unit)
        now = time.monotonic()
        self._counts["idle_seconds"] += now - self._since
        self._since = now
        return unit

    def _register(self, unit: UnitId, batch: pa.RecordBatch, rejected: int) -> None:
        """Hold a unit and say so, asking for more; if nobody hears it, the next heartbeat says the same."""
        plan = header_of(batch).plan
        with self._talk:
            self._end_making(batch)
            if plan != self._follower.plan_of(unit):
                return  # another recipe makes it by now
            self._ring.put(unit, batch)
            lease = self._lease()
            said = Register(
                worker=self._setup.name,
                address=self.address,
                plan=plan,
                unit=unit,
                bytes=batch.nbytes,
                samples=batch.num_rows,
                rejected=rejected,
                incarnation=self._incarnation,
                then=lease,
            )
            try:
                answer = self._connect().ask("register", said, Registered, _CALL_S)
            except Exception as error:
                self._unheard("register", unit, error)
                return
            if not answer.accepted:
                self._ring.forget(unit)
            if answer.granted:
                self._obey(answer.granted, lease)

    def _fail(self, unit: UnitId, reason: str) -> None:
        """Say that a unit could not be made."""
        with self._talk:
            self._end_making(None)
            try:
                self._connect().ask("failed", Failed(self._setup.name, unit, reason), Answer, _CALL_S)
            except Exception as error:
                self._unheard("failed", unit, error)

    def _end_making(self, batch: pa.RecordBatch | None) -> None:
        """Nothing is being made now; `batch` was, or nothing came of it."""
        with self._state:
            now = time.monotonic()
            self._counts["making_seconds"] += now - self._since
            self._counts["failed" if batch is None else "units"] += 1
            self._counts["samples"] += 0 if batch is None else batch.num_rows
            self._making, self._alone, self._since, self._changed = None, False, now, True
            self._void = False
            self._expect()
            self._state.notify_all()

    def _unheard(self, kind: str, unit: UnitId, error: Exception) -> None:
        log.info("%s: %s of %s not heard: %s", self._setup.name, kind, unit, error)
        with self._state:
            self._changed = True
            self._state.notify_all()
