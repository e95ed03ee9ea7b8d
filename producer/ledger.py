"""Who holds which unit and who is encoding which: the coordinator's memory of its workers."""

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, field

from producer.api.channel import RefusedError
from producer.api.unit import UnitId


@dataclass
class Worker:
    """What is known of one worker; `encodes` says since when. `discards` it holds still, but is to forget."""

    address: str
    seen: float
    incarnation: int = 0
    numbers: dict[str, float] = field(default_factory=dict)  # its counters, as it last said them
    holds: set[UnitId] = field(default_factory=set)
    discards: set[UnitId] = field(default_factory=set)
    encodes: dict[UnitId, float] = field(default_factory=dict)
    doubted: bool = False  # it did not deliver, and has not spoken since


@dataclass(frozen=True)
class Held:
    worker: str
    bytes: int


class Ledger:
    """Each unit is held by at most one worker and counted on from at most one; `reopened` hears of those set free."""

    def __init__(self, reopened: Callable[[UnitId], None]) -> None:
        self.workers: dict[str, Worker] = {}
        self.held: dict[UnitId, Held] = {}
        self.order: list[UnitId] = []  # the training units held, sorted
        self.leased: dict[UnitId, str] = {}
        self.bytes = 0  # of the training units held
        self.silenced = 0
        self.deaths: dict[UnitId, int] = {}  # how many workers fell silent or began anew while encoding a unit
        self._sizes = [0, 0]  # training units ever held, their bytes
        self._leases = 0  # of training units
        self._reopened = reopened

    @property
    def mean(self) -> float:
        """Bytes of a training unit; 0 while none is known."""
        count, total = self._sizes
        return total / count if count else 0.0

    @property
    def ahead(self) -> float:
        """Bytes of the training units held, and what those being encoded will add."""
        return self.bytes + self.mean * self._leases

    def where(self, unit: UnitId) -> str:
        """The address of who holds `unit`; empty if nobody does."""
        held = self.held.get(unit)
        return self.workers[held.worker].address if held else ""

    def busy(self, unit: UnitId) -> bool:
        """Whether `unit` is held or being encoded by a worker that is counted on."""
        return unit in self.held or unit in self.leased

    def meet(self, name: str, address: str, now: float, incarnation: int = 0) -> Worker:
        """The worker called `name`, who has just spoken; a later start or another address is a new one, with nothing.

        RefusedError for an earlier start than is known.
        """
        known = self.workers.get(name)
        if known and incarnation < known.incarnation:
            raise RefusedError(f"{name}: this start of it was replaced by a newer one, which is running")
        if known and (known.address != address or incarnation > known.incarnation):
            self.silence(name)
            known = None
        if known is None:
            known = self.workers[name] = Worker(address, now, incarnation)
        known.seen, known.doubted = now, False
        return known

    def silence(self, name: str) -> None:
        """A worker no longer counts: what it held and encoded is for others."""
        self.silenced += 1
        for unit in list(self.workers[name].holds):
            self.drop(unit)
        for unit in self.workers[name].encodes:
            # A unit that another has made by now has ended nobody.
            if unit not in self.held:
                self.deaths[unit] = self.deaths.get(unit, 0) + 1
            self.unlease(unit, name)
        del self.workers[name]

    def part(self, name: str) -> None:
        """A worker that has nothing leaves."""
        assert not self.workers[name].holds and not self.workers[name].encodes, name
        del self.workers[name]

    def hold(self, unit: UnitId, worker: str, size: int) -> None:
        """`worker` holds `unit`, which nobody else does."""
        assert unit not in self.held, unit
        self._end_lease(unit)
        self.deaths.pop(unit, None)
        self.held[unit] = Held(worker, size)
        self.workers[worker].holds.add(unit)
        self.workers[worker].discards.discard(unit)
        if unit.stream == "train":
            insort(self.order, unit)
            self.bytes += size
            self._sizes = [self._sizes[0] + 1, self._sizes[1] + size]

    def drop(self, unit: UnitId) -> None:
        """Nobody holds `unit` any longer; its holder hears so when it next speaks."""
        held = self.held.pop(unit)
        self.workers[held.worker].holds.discard(unit)
        self.workers[held.worker].discards.add(unit)
        if unit.stream == "train":
            del self.order[bisect_left(self.order, unit)]
            self.bytes -= held.bytes
        self._reopened(unit)

    def lease(self, unit: UnitId, worker: str, now: float) -> None:
        """`worker` encodes `unit` and is counted on."""
        assert not self.busy(unit), unit
        self.workers[worker].encodes[unit] = now
        self.leased[unit] = worker
        self._leases += unit.stream == "train"

    def unlease(self, unit: UnitId, worker: str) -> None:
        """`worker` is no longer counted on for `unit`, if it was."""
        if self.leased.get(unit) == worker:
            self._end_lease(unit)
            self._reopened(unit)

    def _end_lease(self, unit: UnitId) -> None:
        if self.leased.pop(unit, None) is not None:
            self._leases -= unit.stream == "train"
