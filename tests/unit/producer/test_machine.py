"""The coordinator's rules under random schedules of everything that can happen to a fleet and its trainers.

What must hold is in `invariant`s and, of answers, where they are given; `teardown` holds that all faults are outlived.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from producer.api.channel import RefusedError
from producer.api.deal import deal
from producer.api.protocol import Ack, Failed, Goodbye, Hello, Lease, Locate, Lost, Propose, Register, Welcome
from producer.api.unit import UnitId
from producer.coordinator import Coordinator, Limits
from producer.journal import Line, from_text, in_force, successor, to_text

UNITS, SIZE = 4, 10
OFFER = Welcome(plan="p", units=UNITS, validation_units=2, encoder="e", terms="{}")
LIMITS = Limits(horizon_bytes=14 * SIZE, heartbeat_s=1.0, lease_s=5.0, late_s=40.0, trainer_s=1e9)
NEAR = 2 * UNITS  # units that are made whatever the horizon says
PREFETCH = 3  # units a group has ahead of the step being trained
KEPT = {UnitId("empty", 0, 0), UnitId("validation", 0, 0), UnitId("validation", 0, 1)}
WORKERS, TRAINERS = 4, 2
DISTURBANCES = (
    "fail",
    "join_or_restart",
    "leave",
    "leave_in_good_order",
    "freeze_or_thaw",
    "compile",
    "register_late",
    "replace_coordinator",
)


@dataclass
class Hand:
    """A worker: `holds` says by which plan it made each unit, `lines` what it has heard of the journal."""

    name: str
    address: str
    incarnation: int
    lines: tuple[Line, ...]
    holds: dict[UnitId, str] = field(default_factory=dict)
    queue: list[UnitId] = field(default_factory=list)
    frozen: bool = False
    leaving: bool = False
    compiling: int = -1  # the step from which on it cannot make units yet

    def plan(self, unit: UnitId) -> str:
        return in_force(self.lines, unit.step).id if unit.stream == "train" else self.lines[0].id

    def lease(self, full: bool, room: int = 2) -> Lease:
        return Lease(
            self.name,
            self.address,
            self.lines[-1].id,
            "e",
            room - len(self.queue),
            full=full,
            holding=tuple(self.holds),
            encoding=tuple(self.queue),
            bytes=SIZE * len(self.holds),
            incarnation=self.incarnation,
            until=self.compiling,
            leaving=self.leaving,
        )

    def hear(self, texts: tuple[str, ...]) -> None:
        """What was made by plans that no longer hold is let go."""
        for line in map(from_text, texts):
            self.lines = (*self.lines, line)
            past = {
                unit for unit in (*self.holds, *self.queue) if unit.stream == "train" and unit.step >= line.from_step
            }
            self.holds = {unit: plan for unit, plan in self.holds.items() if unit not in past}
            self.queue = [unit for unit in self.queue if unit not in past]
            self.compiling = line.from_step if self.compiling < 0 else min(self.compiling, line.from_step)

    def registration(self, unit: UnitId) -> Register:
        return Register(self.name, self.address, self.plan(unit), unit, SIZE, 4, 0, self.incarnation)


@dataclass
class Reader:
    """A trainer's start: `groups` pull their shares in order, up to PREFETCH units ahead; `got` says by which plan."""

    name: str
    incarnation: int
    begin: int
    groups: int
    got: dict[UnitId, str] = field(default_factory=dict)
    ahead: list[int] = field(default_factory=list)  # by group, units it was given since `begin`

    def __post_init__(self) -> None:
        self.ahead = self.ahead or [0] * self.groups

    def share(self, group: int) -> Iterator[UnitId]:
        mine = deal(UNITS, self.groups, group)
        return (UnitId("train", self.begin + at // len(mine), mine[at % len(mine)]) for at in iter(int, None))

    def next(self, group: int) -> UnitId:
        mine = deal(UNITS, self.groups, group)
        laps, at = divmod(self.ahead[group], len(mine))
        return UnitId("train", self.begin + laps, mine[at])

    @property
    def step(self) -> int:
        """Being trained: the first that some group lacks a unit of."""
        return min(self.next(group).step for group in range(self.groups))

    def handed(self, group: int) -> tuple[int, str]:
        """The last step that a group has units of, and by which plan."""
        mine = [unit for unit in self.got if unit.unit in deal(UNITS, self.groups, group)]
        last = max(mine, default=None)
        return (last.step, self.got[last]) if last else (-1, "")


class Fleet(RuleBasedStateMachine):
    """Workers come, go, die, freeze, fail and compile; trainers advance, save, go back with other groups, come and go;
    the recipe changes; messages of the dead arrive late; the coordinator is replaced and has only its journal."""

    pulled = 0  # over all schedules

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.rules = Coordinator(OFFER, LIMITS, 0.0)
        self.journal = self.rules.switches.journal
        self.starts = self.told = 0
        self.hands = {name: self.hand(name) for name in ("w0", "w1")}
        self.readers: dict[str, Reader] = {}
        self.retired: dict[str, int] = {}  # trainers that said goodbye, and their last start
        self.late: list[Register] = []  # of workers that are gone
        self.enter("t0", 0, 1)

    def hand(self, name: str) -> Hand:
        self.starts += 1
        return Hand(name, f"a:{self.starts}", self.starts, self.journal.lines[:1])

    def enter(self, name: str, step: int, groups: int) -> None:
        """A start of a trainer, from `step`, with what it had before that."""
        before = self.readers.get(name)
        incarnation = (before.incarnation if before else self.retired.get(name, 0)) + 1
        got = {unit: plan for unit, plan in before.got.items() if unit.step < step} if before else {}
        self.readers[name] = Reader(name, incarnation, step, groups, got)
        plan = got.get(UnitId("train", step - 1, 0), "")
        welcome = self.rules.hello(Hello(name, incarnation, step, plan), self.now)
        assert welcome.plan == self.journal.at(step).id

    @rule(rounds=st.integers(1, 6), seconds=st.sampled_from([0.1, 1.0]))
    def go_on(self, rounds: int, seconds: float) -> None:
        """Everybody who is well does what it should for a while."""
        for _ in range(rounds):
            self.now += seconds
            for hand in list(self.hands.values()):
                if not hand.frozen:
                    self.beat(hand)
                    while hand.queue:
                        self.make(hand)
            for reader in self.readers.values():
                for group in range(reader.groups):
                    self.pull(int(reader.name[1:]), group)

    @rule(rounds=st.integers(1, 6), which=st.integers(0, TRAINERS - 1))
    def go_on_and_save(self, rounds: int, which: int) -> None:
        self.go_on(rounds, 0.2)
        self.checkpoint(which)

    @rule(kind=st.sampled_from(DISTURBANCES), which=st.integers(0, WORKERS - 1), rounds=st.integers(0, 3))
    def disturb(self, kind: str, which: int, rounds: int) -> None:
        self.go_on(rounds, 0.1)
        getattr(self, kind)(which)

    # Workers.

    @rule(which=st.integers(0, WORKERS - 1), full=st.booleans())
    def heartbeat(self, which: int, full: bool) -> None:
        hand = self.hands.get(f"w{which}")
        if hand and not hand.frozen:
            self.beat(hand, full)

    def beat(self, hand: Hand, full: bool = False) -> None:
        rules = self.rules
        asked, known = set(rules.demand.asked), rules.ledger.held.keys() | rules.ledger.leased.keys()
        # What only a new coordinator has to be told of is there already, however much it is.
        self.told += SIZE * sum(unit.stream == "train" and unit not in known for unit in (*hand.holds, *hand.queue))
        granted = rules.lease(hand.lease(full), self.now)
        steps = [trainer.step for trainer in rules.demand.trainers.values()]
        assert not (hand.leaving and granted.units), "a worker that leaves"
        for unit in granted.units:
            assert unit not in hand.holds or unit in granted.forget, "made twice by one worker"
            if unit.stream != "train" or unit in asked:
                continue
            assert unit.step >= min(steps, default=0), "a unit of the past"
            assert hand.compiling < 0 or unit.step < hand.compiling, "a worker that cannot make it yet"
            assert unit.step < min([from_text(text).from_step for text in granted.entries], default=unit.step + 1)
            far = (rules.demand.distance(unit) or 0) >= NEAR
            assert not far or rules.ledger.ahead <= LIMITS.horizon_bytes, "beyond the horizon"
        limit = LIMITS.horizon_bytes + SIZE * NEAR * max(1, len(steps))
        assert rules.ledger.ahead <= limit + self.told, "beyond the horizon and the next two steps"
        if rules.ledger.ahead <= limit:
            self.told = 0
        hand.holds = {unit: plan for unit, plan in hand.holds.items() if unit not in granted.forget}
        hand.queue = [unit for unit in hand.queue if unit not in granted.forget]
        hand.hear(granted.entries)
        hand.queue += granted.units
        if hand.leaving and not hand.holds:
            self.beat_of_parting(hand)

    def beat_of_parting(self, hand: Hand) -> None:
        self.rules.lease(hand.lease(False), self.now)
        assert hand.name not in self.rules.ledger.workers
        del self.hands[hand.name]

    @rule(which=st.integers(0, WORKERS - 1))
    def finish(self, which: int) -> None:
        hand = self.hands.get(f"w{which}")
        if hand and hand.queue and not hand.frozen:
            self.make(hand)

    def make(self, hand: Hand) -> None:
        unit = hand.queue.pop(0)
        if self.rules.register(hand.registration(unit), self.now).accepted:
            hand.holds[unit] = hand.plan(unit)

    def fail(self, which: int) -> None:
        hand = self.hands.get(f"w{which}")
        if hand and hand.queue and not hand.frozen:
            self.rules.failed(Failed(hand.name, hand.queue.pop(0), "Fault"), self.now)

    def join_or_restart(self, which: int) -> None:
        self.bury(f"w{which}")
        self.hands[f"w{which}"] = self.hand(f"w{which}")

    def leave(self, which: int) -> None:
        self.bury(f"w{which}")

    def leave_in_good_order(self, which: int) -> None:
        """It makes nothing more, serves what it holds, and is gone when nothing is left."""
        if f"w{which}" in self.hands:
            hand = self.hands[f"w{which}"]
            hand.leaving, hand.queue = True, []

    def bury(self, name: str) -> None:
        gone = self.hands.pop(name, None)
        if gone:
            self.late = [*self.late, *map(gone.registration, gone.queue)][-6:]

    def register_late(self, which: int) -> None:
        if not self.late:
            return
        said = self.late.pop(which % len(self.late))
        replaced = said.worker in self.rules.ledger.workers and (
            self.rules.ledger.workers[said.worker].incarnation > said.incarnation
        )
        try:
            answer = self.rules.register(said, self.now)
        except RefusedError:
            assert replaced or said.plan not in {line.id for line in self.journal.lines}
        else:
            assert not replaced, "a start that was replaced is heard"
            held = self.rules.ledger.held.get(said.unit)
            assert answer.accepted == (held is not None and held.worker == said.worker)

    def freeze_or_thaw(self, which: int) -> None:
        if f"w{which}" in self.hands:
            self.hands[f"w{which}"].frozen ^= True

    def compile(self, which: int) -> None:
        if f"w{which}" in self.hands:
            self.hands[f"w{which}"].compiling = -1

    # The coordinator.

    @rule(seconds=st.floats(0.0, 8.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    def replace_coordinator(self, which: int) -> None:
        self.rules = Coordinator(OFFER, LIMITS, self.now, self.journal)

    @precondition(lambda self: len(self.journal.lines) < 6)
    @rule(away=st.integers(-2, 4))
    def switch_recipe(self, away: int) -> None:
        said = self.rules.recipes(self.now)
        line = successor(self.journal.last, max(0, said.least + away), UNITS, {"n": len(self.journal.lines)})
        before = self.journal.lines
        answer = self.rules.propose(Propose(to_text(line)), self.now)
        assert answer.accepted == (line.from_step >= said.least), answer
        assert self.journal.lines == ((*before, line) if answer.accepted else before)
        if answer.accepted:
            given = [unit.step for reader in self.readers.values() for unit in reader.got]
            assert line.from_step > max(given, default=-1), "the past was changed"

    # Trainers.

    @rule(which=st.integers(0, TRAINERS - 1), group=st.integers(0, UNITS - 1))
    def pull(self, which: int, group: int) -> None:
        """All that a group may have and there is."""
        reader = self.readers.get(f"t{which}")
        while reader and self.take(reader, group % reader.groups):
            pass

    def take(self, reader: Reader, group: int) -> bool:
        unit = reader.next(group)
        if (unit.step - reader.step) * UNITS // reader.groups >= PREFETCH:
            return False
        handed, plan = reader.handed(group)
        said = Locate(reader.name, reader.incarnation, reader.step, unit, 0.0, handed, plan)
        found = self.rules.locate(said, self.now)
        if not found.address:
            return False
        holder = next((hand for hand in self.hands.values() if hand.address == found.address), None)
        if holder is None or holder.frozen or unit not in holder.holds:
            self.rules.lost(Lost(unit, found.address, reader.name, reader.incarnation), self.now)
            return False
        assert holder.holds[unit] == self.journal.at(unit.step).id == found.plan, "a unit of another plan"
        reader.got[unit] = found.plan
        Fleet.pulled += 1
        reader.ahead[group] += 1
        return True

    @rule(which=st.integers(0, TRAINERS - 1), unit=st.sampled_from(sorted(KEPT)))
    def validate(self, which: int, unit: UnitId) -> None:
        reader = self.readers.get(f"t{which}")
        if reader:
            self.rules.locate(Locate(reader.name, reader.incarnation, reader.step, unit, 0.0), self.now)

    @rule(which=st.integers(0, TRAINERS - 1))
    def checkpoint(self, which: int) -> None:
        reader = self.readers.get(f"t{which}")
        if reader and reader.step > reader.begin:
            self.rules.ack(Ack(reader.name, reader.incarnation, reader.step - 1), self.now)

    @rule(which=st.integers(0, TRAINERS - 1), back=st.integers(0, 8), groups=st.sampled_from([1, 2, 4]))
    def start_again(self, which: int, back: int, groups: int) -> None:
        """From some checkpoint, perhaps an old one, with any number of groups."""
        reader = self.readers.get(f"t{which}")
        self.enter(f"t{which}", max(0, reader.step - back) if reader else back, groups)

    @precondition(lambda self: len(self.readers) > 1)
    @rule(which=st.integers(0, TRAINERS - 1))
    def retire(self, which: int) -> None:
        reader = self.readers.pop(f"t{which}", None)
        if reader:
            self.retired[reader.name] = reader.incarnation
            self.rules.goodbye(Goodbye(reader.name, reader.incarnation), self.now)

    @rule(which=st.integers(0, TRAINERS - 1), kind=st.integers(0, 4))
    def speak_as_the_one_before(self, which: int, kind: int) -> None:
        """An older start of a trainer is refused, whatever it says, also by a coordinator that is new itself."""
        reader = self.readers.get(f"t{which}")
        if reader is None or reader.incarnation == 1:
            return
        name, old, unit = reader.name, reader.incarnation - 1, UnitId("train", reader.step, 0)
        rules = self.rules
        with pytest.raises(RefusedError, match=f"start {old} was replaced by"):
            (
                lambda: rules.hello(Hello(name, old, 0), self.now),
                lambda: rules.locate(Locate(name, old, reader.step, unit, 0.0), self.now),
                lambda: rules.ack(Ack(name, old, 10**6), self.now),
                lambda: rules.lost(Lost(unit, "a:1", name, old), self.now),
                lambda: rules.goodbye(Goodbye(name, old), self.now),
            )[kind]()

    # What holds always.

    @invariant()
    def nobody_shares_a_unit(self) -> None:
        ledger = self.rules.ledger
        held = [unit for worker in ledger.workers.values() for unit in worker.holds]
        assert len(held) == len(set(held)) and set(held) == ledger.held.keys()
        assert all(unit in ledger.workers[entry.worker].holds for unit, entry in ledger.held.items())
        assert not ledger.held.keys() & ledger.leased.keys()
        assert all(unit in ledger.workers[name].encodes for unit, name in ledger.leased.items())
        assert ledger.bytes == sum(entry.bytes for unit, entry in ledger.held.items() if unit.stream == "train")
        assert ledger.order == sorted(unit for unit in ledger.held if unit.stream == "train")

    @invariant()
    def no_free_unit_is_out_of_sight(self) -> None:
        rules = self.rules
        for trainer in rules.demand.trainers.values():
            passed = {at for at in range(trainer.step * UNITS, trainer.cursor)}
            free = {at for at in passed if not rules.ledger.busy(UnitId("train", *divmod(at, UNITS)))}
            assert free <= set(trainer.holes), "a unit that nobody will be given"
        waiting = {unit for unit in rules.demand.asked if not rules.ledger.busy(unit)}
        assert waiting <= rules.demand._queued, "somebody waits for a unit that nobody will be given"

    @invariant()
    def memory_is_bounded(self) -> None:
        rules = self.rules
        # What each trainer's groups may wait for, now and at starts within the minute that it is remembered.
        assert len(rules.demand.asked) <= 200 and len(rules.demand._queue) <= 200
        assert len(rules.demand._queue) == len(rules.demand._queued)
        assert len(rules._troubles) <= 200 and len(rules.ledger.deaths) <= 200
        assert len(rules.ledger.workers) <= WORKERS and len(self.journal.handed) <= TRAINERS
        assert all(len(trainer.holes) <= 400 for trainer in rules.demand.trainers.values())

    # What holds in the end.

    def teardown(self) -> None:
        """With the faults over, every trainer gets every unit, and nothing stays that nobody needs."""
        for name in [name for name, hand in self.hands.items() if hand.leaving]:
            self.bury(name)
        self.hands.setdefault("w0", self.hand("w0"))
        for hand in self.hands.values():
            hand.frozen, hand.compiling = False, -1
        self.settle()
        for reader in self.readers.values():
            self.rules.ack(Ack(reader.name, reader.incarnation, reader.step - 1), self.now)
        for _ in range(80):
            self.work()
        held = [unit for hand in self.hands.values() for unit in hand.holds]
        assert len(held) == len(set(held)) and set(held) >= KEPT
        ahead = [unit for unit in held if unit.stream == "train"]
        assert all(any(unit.step >= reader.step for reader in self.readers.values()) for unit in ahead)
        assert len(ahead) * SIZE <= LIMITS.horizon_bytes + SIZE * NEAR * len(self.readers)
        made_by = {unit: plan for hand in self.hands.values() for unit, plan in hand.holds.items()}
        assert all(plan == self.rules.switches.line(unit).id for unit, plan in made_by.items())
        left = self.rules.demand.asked, self.rules._troubles, self.rules.ledger.deaths
        assert left == ({}, {}, {})

    def settle(self) -> None:
        goals = {name: reader.step + 3 for name, reader in self.readers.items()}
        for _ in range(400):
            self.work()
            for name, reader in self.readers.items():
                for group in range(reader.groups):
                    while reader.step < goals[name] and self.take(reader, group):
                        pass
            if all(reader.step >= goals[name] for name, reader in self.readers.items()):
                return
        raise AssertionError(f"trainers never got there: {goals}, {self.rules.status(self.now)}")

    def work(self) -> None:
        self.now += 1.0
        for hand in self.hands.values():
            self.beat(hand)
            hand.compiling = -1
            while hand.queue:
                self.make(hand)


def test_any_schedule_of_a_fleet_keeps_the_rules() -> None:
    run_state_machine_as_test(
        Fleet, settings=settings(max_examples=12, stateful_step_count=50, phases=[Phase.generate])
    )


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(5))
def test_any_schedule_of_a_fleet_keeps_the_rules_for_ten_thousand_steps(number: int) -> None:
    thorough = settings(
        max_examples=120,
        stateful_step_count=100,
        phases=[Phase.generate],
        derandomize=False,
        print_blob=True,
    )
    Fleet.pulled = 0
    run_state_machine_as_test(seed(number)(Fleet), settings=thorough)
    assert Fleet.pulled > 12_000
