"""Which units are wanted, and how soon: the coordinator's memory of its trainers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from producer.api.channel import RefusedError
from producer.api.protocol import Welcome
from producer.api.unit import UnitId

_ASKED_S = 60.0  # a unit nobody has asked for again for this long is no longer waited for


@dataclass
class Trainer:
    """It trains `step` and will not go back to `acked`. `cursor`: no training unit from `step` to here is free."""

    incarnation: int
    step: int
    acked: int
    seen: float
    cursor: int = 0


class Demand:
    """What the trainers of one plan, `offer`, want. While none has spoken, its units from `first` on are wanted."""

    def __init__(self, offer: Welcome) -> None:
        self.offer = offer
        self.trainers: dict[str, Trainer] = {}
        self.asked: dict[UnitId, float] = {}  # units someone waits for, and when they last said so
        self.kept = [UnitId("empty", 0, 0), *(UnitId("validation", 0, u) for u in range(offer.validation_units))]
        self._kept_cursor = 0
        self._nobody = Trainer(incarnation=-1, step=0, acked=-1, seen=0.0)

    def begin(self, step: int) -> None:
        """The step production begins at while no trainer has spoken."""
        self._nobody = Trainer(incarnation=-1, step=step, acked=step - 1, seen=0.0)

    def known(self, name: str, incarnation: int, now: float) -> Trainer | None:
        """The trainer called `name`, None if this start of it has not spoken yet; an older start is refused."""
        known = self.trainers.get(name)
        if known is None or incarnation > known.incarnation:
            return None
        if incarnation < known.incarnation:
            raise RefusedError(
                f"trainer {name}: start {incarnation} was replaced by {known.incarnation}; a newer one is running"
            )
        known.seen = now
        return known

    def place(self, name: str, incarnation: int, step: int, now: float) -> None:
        """A trainer is at `step`, wherever it was before."""
        self.trainers[name] = Trainer(incarnation, step, step - 1, now, step * self.offer.units)

    def check(self, unit: UnitId) -> None:
        """RefusedError if the plan has no such unit."""
        counts = {"train": self.offer.units, "validation": self.offer.validation_units, "empty": 1}
        count = counts.get(unit.stream)
        if count is None or not 0 <= unit.unit < count or unit.step < 0 or (unit.stream != "train" and unit.step):
            raise RefusedError(f"{unit} is not in plan {self.offer.plan}, which has {counts} units a step")

    def distance(self, unit: UnitId) -> int | None:
        """Training units until a trainer gets to `unit`; -1 for those kept all along, None if none ever will."""
        if unit.stream != "train":
            return -1
        ahead = [unit.step - trainer.step for trainer in self._readers() if unit.step >= trainer.step]
        return min(ahead) * self.offer.units + unit.unit if ahead else None

    def wanted(self, unit: UnitId) -> bool:
        """Whether it is worth making."""
        return unit in self.asked or self.distance(unit) is not None

    def useful(self, unit: UnitId) -> bool:
        """Whether it is worth keeping: wanted, or of a step that a trainer may go back to."""
        return self.wanted(unit) or any(unit.step > trainer.acked for trainer in self._readers())

    def candidates(self, busy: Callable[[UnitId], bool], free: Callable[[UnitId], bool]) -> Iterator[UnitId]:
        """What to encode next, best first, without end: waited for, kept all along, then the plan.

        A unit is `busy` while a worker has it; one that is not may still not be `free` to the worker that asks.
        """
        asked = sorted(self.asked, key=lambda unit: (self.distance(unit) or 0, unit))
        yield from (unit for unit in asked if free(unit))
        while self._kept_cursor < len(self.kept) and busy(self.kept[self._kept_cursor]):
            self._kept_cursor += 1
        yield from (unit for unit in self.kept[self._kept_cursor :] if free(unit))
        streams = [self._ahead(trainer, busy, free) for trainer in self._readers()]
        heads = [next(stream) for stream in streams]
        while True:
            best = min(range(len(heads)), key=lambda index: (self.distance(heads[index]) or 0, heads[index]))
            yield heads[best]
            heads[best] = next(streams[best])

    def _ahead(
        self, trainer: Trainer, busy: Callable[[UnitId], bool], free: Callable[[UnitId], bool]
    ) -> Iterator[UnitId]:
        at = trainer.cursor = max(trainer.cursor, trainer.step * self.offer.units)
        while True:
            unit = UnitId("train", at // self.offer.units, at % self.offer.units)
            if trainer.cursor == at and busy(unit):
                trainer.cursor = at + 1
            if free(unit):
                yield unit
            at += 1

    def reopen(self, unit: UnitId) -> None:
        """Let `candidates` find a unit again."""
        if unit.stream != "train":
            self._kept_cursor = 0
            return
        for trainer in self._readers():
            trainer.cursor = min(trainer.cursor, unit.step * self.offer.units + unit.unit)

    def sweep(self, now: float, silence_s: float) -> bool:
        """Stop counting trainers that have been silent; whether there were any."""
        for unit in [unit for unit, since in self.asked.items() if now - since > _ASKED_S]:
            del self.asked[unit]
        gone = [name for name, trainer in self.trainers.items() if now - trainer.seen > silence_s]
        for name in gone:
            self.begin(self.trainers.pop(name).step)
        return bool(gone)

    def _readers(self) -> list[Trainer]:
        return list(self.trainers.values()) or [self._nobody]
