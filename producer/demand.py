"""Which units are wanted, and how soon: the coordinator's memory of its trainers."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from producer.api.channel import RefusedError
from producer.api.protocol import Welcome
from producer.api.unit import UnitId

_ASKED_S = 60.0  # a unit nobody has asked for again for this long is no longer waited for


@dataclass
class Trainer:
    """It trains `step` and will not go back to `acked`.

    Training units are counted from step 0 on: those from `step` to before `cursor` that are free are among `holes`,
    which is sorted and may name others too.
    """

    incarnation: int
    step: int
    acked: int
    seen: float
    cursor: int = 0
    holes: list[int] = field(default_factory=list)
    ranks: int = 0  # that share a step; 0: not said


class Demand:
    """What the trainers of one plan, `offer`, want. While none has spoken, its units from `first` on are wanted."""

    def __init__(self, offer: Welcome) -> None:
        self.offer = offer
        self.trainers: dict[str, Trainer] = {}
        self.asked: dict[UnitId, float] = {}  # units someone waits for, and when they last said so
        # Of those, the ones that may not be begun yet: a heap by their distance when they were asked for.
        self._queue: list[tuple[int, UnitId]] = []
        self._queued: set[UnitId] = set()
        self.kept = [UnitId("empty", 0, 0), *(UnitId("validation", 0, u) for u in range(offer.validation_units))]
        self._kept_cursor = 0
        self._nobody = Trainer(incarnation=-1, step=0, acked=-1, seen=0.0)
        self.heard = False  # a trainer has spoken
        self._over = False  # the last trainer has said goodbye

    def begin(self, step: int) -> None:
        """The step production begins at while no trainer has spoken."""
        self._over = False
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
        self.heard = True
        self.trainers[name] = Trainer(incarnation, step, step - 1, now, step * self.offer.units)

    def ask(self, unit: UnitId, now: float) -> None:
        """Someone waits for `unit`."""
        self.asked[unit] = now
        self._enqueue(unit)

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

    @property
    def acked(self) -> float:
        """The last step that no trainer will go back to."""
        return min((trainer.acked for trainer in self._readers()), default=math.inf)

    def behind(self, held: Sequence[UnitId]) -> int:
        """How many of the training units `held`, which are sorted, all trainers have passed."""
        first = min((trainer.step for trainer in self._readers()), default=None)
        return len(held) if first is None else bisect_left(held, UnitId("train", first, 0))

    def steps_ahead(self, held: Sequence[UnitId]) -> int:
        """Whole steps that are there for the trainer for which the fewest are."""
        return min((self._whole(trainer.step, held) for trainer in self._readers()), default=0)

    def _whole(self, step: int, held: Sequence[UnitId]) -> int:
        units, begin, steps = self.offer.units, bisect_left(held, UnitId("train", step, 0)), 0
        while begin + units <= len(held) and held[begin + units - 1] == UnitId("train", step + steps, units - 1):
            begin, steps = begin + units, steps + 1
        return steps

    def least(self, held: Sequence[UnitId]) -> UnitId | None:
        """Of the training units `held`, which are sorted, one trained before; if there is none, the one needed last."""
        steps = sorted({trainer.step for trainer in self._readers()})
        if held and (not steps or held[0].step < steps[0]):
            return held[0]
        # What a trainer needs last comes right before where the next one is.
        ends = [bisect_left(held, UnitId("train", step, 0)) for step in steps[1:]] + [len(held)]
        return max((held[end - 1] for end in ends if end), key=lambda unit: self.distance(unit) or 0, default=None)

    def useful(self, unit: UnitId) -> bool:
        """Whether it is worth keeping: wanted, or of a step that a trainer may go back to."""
        return self.wanted(unit) or any(unit.step > trainer.acked for trainer in self._readers())

    def leave(self, name: str, others: bool) -> None:
        """A trainer will not come back: without another one, nothing more is wanted.

        `others` may have known an earlier coordinator: one that left unknown to this one says nothing of them.
        """
        if self.trainers.pop(name, None) or not others:
            self.heard, self._over = True, not self.trainers

    def candidates(
        self, busy: Callable[[UnitId], bool], free: Callable[[UnitId], bool], until: int | None = None
    ) -> Iterator[UnitId]:
        """What to encode next, best first: waited for, kept all along, then the plan to before step `until`, if given.

        A unit is `busy` while a worker has it; one that is not may still not be `free` to the worker that asks.
        """
        yield from self._waited_for(busy, free)
        while self._kept_cursor < len(self.kept) and busy(self.kept[self._kept_cursor]):
            self._kept_cursor += 1
        yield from (unit for unit in self.kept[self._kept_cursor :] if free(unit))
        streams = [self._ahead(trainer, busy, free, until) for trainer in self._readers()]
        heads = {index: unit for index, stream in enumerate(streams) if (unit := next(stream, None))}
        while heads:
            best = min(heads, key=lambda index: (self.distance(heads[index]) or 0, heads[index]))
            yield heads.pop(best)
            if following := next(streams[best], None):
                heads[best] = following

    def _waited_for(self, busy: Callable[[UnitId], bool], free: Callable[[UnitId], bool]) -> Iterator[UnitId]:
        kept: list[tuple[int, UnitId]] = []
        try:
            while self._queue:
                entry = heappop(self._queue)
                if entry[1] not in self.asked or busy(entry[1]):
                    self._queued.discard(entry[1])
                    continue
                kept.append(entry)
                if free(entry[1]):
                    yield entry[1]
        finally:
            for entry in kept:
                heappush(self._queue, entry)

    def _enqueue(self, unit: UnitId) -> None:
        if unit not in self._queued:
            self._queued.add(unit)
            heappush(self._queue, (self.distance(unit) or 0, unit))

    def _ahead(
        self, trainer: Trainer, busy: Callable[[UnitId], bool], free: Callable[[UnitId], bool], until: int | None
    ) -> Iterator[UnitId]:
        units, holes = self.offer.units, trainer.holes
        end = math.inf if until is None else until * units
        del holes[: bisect_left(holes, trainer.step * units)]
        trainer.cursor = max(trainer.cursor, trainer.step * units)
        index = 0
        while (holes[index] if index < len(holes) else trainer.cursor) < end:
            # What was passed without being taken stays a hole.
            if index == len(holes):
                holes.append(trainer.cursor)
                trainer.cursor += 1
            unit = UnitId("train", holes[index] // units, holes[index] % units)
            if busy(unit):
                del holes[index]
                continue
            if free(unit):
                yield unit
            index += 1

    def reopen(self, unit: UnitId) -> None:
        """Let `candidates` find a unit again."""
        if unit in self.asked:
            self._enqueue(unit)
        if unit.stream != "train":
            self._kept_cursor = 0
            return
        number = unit.step * self.offer.units + unit.unit
        for trainer in self._readers():
            if unit.step >= trainer.step and number < trainer.cursor:
                index = bisect_left(trainer.holes, number)
                if trainer.holes[index : index + 1] != [number]:
                    trainer.holes.insert(index, number)

    def sweep(self, now: float, silence_s: float) -> list[str]:
        """Stop counting trainers that have been silent; which there were."""
        for unit in [unit for unit, since in self.asked.items() if now - since > _ASKED_S]:
            del self.asked[unit]
        gone = [name for name, trainer in self.trainers.items() if now - trainer.seen > silence_s]
        for name in gone:
            self.begin(self.trainers.pop(name).step)
        return gone

    def _readers(self) -> list[Trainer]:
        return list(self.trainers.values()) or ([] if self._over else [self._nobody])
