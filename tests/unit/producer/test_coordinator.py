"""The coordinator's rules alone: single stories, then random schedules of everything that can happen to a fleet."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from producer.api.channel import RefusedError
from producer.api.protocol import Ack, Failed, Goodbye, Granted, Hello, Lease, Locate, Lost, Register, Welcome
from producer.api.unit import UnitId
from producer.coordinator import Coordinator, Limits

OFFER = Welcome(plan="p", units=3, validation_units=2, encoder="e")
SIZE = 10
LIMITS = Limits(horizon_bytes=10 * SIZE, heartbeat_s=1.0, lease_s=5.0, late_s=40.0, trainer_s=100.0)
KEPT = {UnitId("empty", 0, 0), UnitId("validation", 0, 0), UnitId("validation", 0, 1)}


def train(step: int, unit: int) -> UnitId:
    return UnitId("train", step, unit)


@dataclass
class Hand:
    """A worker as the coordinator sees one: `now` it may be frozen or replaced at another address."""

    name: str
    address: str
    holds: list[UnitId] = field(default_factory=list)
    queue: list[UnitId] = field(default_factory=list)
    frozen: bool = False

    def beat(self, rules: Coordinator, now: float, room: int = 2, full: bool = False) -> Granted:
        lease = Lease(
            self.name,
            self.address,
            "p",
            "e",
            room - len(self.queue),
            full=full,
            holding=tuple(self.holds),
            encoding=tuple(self.queue),
            bytes=SIZE * len(self.holds),
        )
        granted = rules.lease(lease, now)
        self.holds = [unit for unit in self.holds if unit not in granted.forget]
        self.queue = [unit for unit in self.queue if unit not in granted.forget] + list(granted.units)
        return granted

    def finish(self, rules: Coordinator, now: float) -> bool:
        unit = self.queue.pop(0)
        accepted = rules.register(Register(self.name, self.address, "p", unit, SIZE, 4, 0), now).accepted
        if accepted and unit not in self.holds:
            self.holds.append(unit)
        return accepted


def work(rules: Coordinator, hands: list[Hand], now: float, rounds: int = 30) -> None:
    for _ in range(rounds):
        for hand in hands:
            hand.beat(rules, now)
            while hand.queue:
                hand.finish(rules, now)


def fresh(now: float = 0.0) -> tuple[Coordinator, Hand]:
    rules = Coordinator(OFFER, LIMITS, now)
    rules.hello(Hello("t", 1, 0), now)
    return rules, Hand("w0", "a:0")


def locate(rules: Coordinator, unit: UnitId, now: float, *, step: int = 0, incarnation: int = 1) -> str:
    return rules.locate(Locate("t", incarnation, step, unit, 0.0), now).address


def test_units_that_are_kept_come_first_then_the_plan_in_order() -> None:
    rules, hand = fresh()
    granted = hand.beat(rules, 0.0, room=6).units
    assert set(granted[:3]) == KEPT
    assert granted[3:] == (train(0, 0), train(0, 1), train(0, 2))


def test_what_someone_waits_for_comes_before_all_else() -> None:
    rules, hand = fresh()
    assert locate(rules, train(1, 2), 0.0) == ""
    assert hand.beat(rules, 0.0, room=1).units == (train(1, 2),)


def test_production_stops_at_the_horizon_and_goes_on_after_an_ack() -> None:
    rules, hand = fresh()
    work(rules, [hand], 0.0)
    ahead = [unit for unit in hand.holds if unit.stream == "train"]
    assert ahead == [train(n // 3, n % 3) for n in range(10)]
    rules.ack(Ack("t", 1, 1), 1.0)
    work(rules, [hand], 1.0)
    ahead = [unit for unit in hand.holds if unit.stream == "train"]
    assert ahead == [train(n // 3, n % 3) for n in range(6, 16)]


def test_the_next_step_is_made_even_if_it_is_larger_than_the_horizon() -> None:
    rules = Coordinator(OFFER, Limits(horizon_bytes=SIZE), 0.0)
    rules.hello(Hello("t", 1, 0), 0.0)
    hand = Hand("w0", "a:0")
    work(rules, [hand], 0.0)
    assert {unit for unit in hand.holds if unit.stream == "train"} == {train(n // 3, n % 3) for n in range(6)}


def test_trained_units_are_kept_for_going_back_until_the_room_is_needed() -> None:
    rules, hand = fresh()
    work(rules, [hand], 0.0)
    assert locate(rules, train(2, 0), 0.0, step=2) == "a:0"
    work(rules, [hand], 0.0)
    ahead = sorted(unit for unit in hand.holds if unit.stream == "train")
    # Steps 0 and 1 were trained but not acked; they made room for units that are still needed.
    assert ahead == [train(n // 3, n % 3) for n in range(6, 16)]


def test_a_silent_worker_loses_its_leases_and_another_gets_them() -> None:
    rules, slow = fresh()
    units = slow.beat(rules, 0.0).units
    other = Hand("w1", "a:1")
    assert not set(other.beat(rules, 4.0).units) & set(units)
    other.queue.clear()
    assert set(other.beat(rules, 6.0).units) == set(units)


def test_the_first_registration_wins() -> None:
    rules, slow = fresh()
    unit = slow.beat(rules, 0.0, room=1).units[0]
    other = Hand("w1", "a:1")
    assert other.beat(rules, 6.0, room=1).units == (unit,)
    assert other.finish(rules, 6.0)
    assert not slow.finish(rules, 7.0)
    assert locate(rules, unit, 7.0) == "a:1"


def test_a_unit_that_takes_too_long_goes_to_another_worker_too() -> None:
    rules, stuck = fresh()
    unit = stuck.beat(rules, 0.0, room=1).units[0]
    for now in range(1, 45):
        stuck.beat(rules, float(now), room=1)
    other = Hand("w1", "a:1")
    assert other.beat(rules, 45.0, room=1).units == (unit,)
    assert other.finish(rules, 46.0)
    assert stuck.beat(rules, 46.0, room=1).forget == (unit,)


def test_where_the_next_units_are_is_said_along_and_counts_as_given() -> None:
    rules, hand = fresh()
    work(rules, [hand], 0.0)
    more = (train(0, 1), train(0, 2), train(3, 2))
    found = rules.locate(Locate("t", 1, 0, train(0, 0), 0.0, more=more), 0.0)
    assert (found.address, found.more) == ("a:0", ("a:0", "a:0", ""))
    assert rules.switches.least == 1, "a unit that is not ready was not given"
    found = rules.locate(Locate("t", 1, 0, train(0, 1), 0.0, more=(train(2, 0),)), 0.0)
    assert found.more == ("a:0",) and rules.switches.least == 3
    assert rules.locate(Locate("t", 1, 0, train(3, 2), 0.0, more=more), 0.0).more == ()
    with pytest.raises(RefusedError, match="is not in plan p"):
        rules.locate(Locate("t", 1, 0, train(0, 0), 0.0, more=(train(0, 3),)), 0.0)


def test_an_older_start_of_a_trainer_is_refused_with_the_reason() -> None:
    rules, _ = fresh()
    rules.hello(Hello("t", 2, 0), 1.0)
    for message in (Hello("t", 1, 0), Locate("t", 1, 0, train(0, 0), 0.0), Ack("t", 1, 5)):
        with pytest.raises(RefusedError, match="start 1 was replaced by 2"):
            {Hello: rules.hello, Locate: rules.locate, Ack: rules.ack}[type(message)](message, 2.0)  # type: ignore[operator]


def test_a_unit_outside_the_plan_is_refused() -> None:
    rules, _ = fresh()
    for unit in (train(0, 3), train(-1, 0), UnitId("validation", 0, 2), UnitId("validation", 1, 0), UnitId("x", 0, 0)):
        with pytest.raises(RefusedError, match="is not in plan p"):
            locate(rules, unit, 0.0)


def test_a_worker_of_another_plan_or_encoder_is_refused() -> None:
    rules, _ = fresh()
    for plan, encoder in (("q", "e"), ("p", "f")):
        with pytest.raises(RefusedError, match="start it anew"):
            rules.lease(Lease("w", "a:0", plan, encoder, 1), 0.0)


def test_a_trainer_that_goes_back_gets_forgotten_units_again() -> None:
    rules, hand = fresh()
    work(rules, [hand], 0.0)
    rules.ack(Ack("t", 1, 4), 1.0)
    work(rules, [hand], 1.0)
    assert train(1, 0) not in hand.holds
    rules.hello(Hello("t", 2, 1), 2.0)
    work(rules, [hand], 2.0)
    ahead = sorted(unit for unit in hand.holds if unit.stream == "train")
    assert ahead == [train(n // 3, n % 3) for n in range(3, 13)]


def test_a_lost_unit_is_made_again_by_another_worker_and_forgotten_by_the_first() -> None:
    rules, first = fresh()
    second = Hand("w1", "a:1")
    second.beat(rules, 0.0, room=0)
    work(rules, [first], 0.0)
    assert rules.lost(Lost(train(0, 1), "a:0"), 1.0).accepted
    assert locate(rules, train(0, 1), 1.0) == ""
    assert train(0, 1) in first.beat(rules, 1.0).forget
    assert train(0, 1) not in first.queue
    assert second.beat(rules, 1.0, room=1).units == (train(0, 1),)


def test_a_worker_that_did_not_deliver_and_is_silent_soon_loses_all_it_holds() -> None:
    rules, first = fresh()
    second = Hand("w1", "a:1")
    work(rules, [first], 0.0)
    first.beat(rules, 0.5)
    rules.lost(Lost(train(0, 0), "a:0"), 1.0)
    second.beat(rules, 2.8)
    assert rules.ledger.held[train(0, 2)].worker == "w0", "one that speaks late is not gone"
    work(rules, [second], 3.2)
    assert {rules.ledger.held[train(0, unit)].worker for unit in range(3)} == {"w1"}
    # Back, it is told to forget what another made meanwhile.
    assert set(first.beat(rules, 3.3).forget) >= {train(0, 0), train(0, 1), train(0, 2)}


def test_a_lost_unit_is_made_again_by_its_worker_if_there_is_no_other() -> None:
    rules, only = fresh()
    work(rules, [only], 0.0)
    rules.lost(Lost(train(0, 1), "a:0"), 1.0)
    granted = only.beat(rules, 1.0)
    assert train(0, 1) in granted.forget and train(0, 1) in granted.units
    assert only.finish(rules, 1.0)
    assert locate(rules, train(0, 1), 1.0) == "a:0"


def test_a_unit_that_cannot_be_made_is_tried_by_others_and_after_growing_pauses() -> None:
    rules, first = fresh()
    second = Hand("w1", "a:1")
    unit = first.beat(rules, 0.0, room=1).units[0]
    first.queue.clear()
    rules.failed(Failed("w0", unit, "OSError"), 0.0)
    assert unit not in first.beat(rules, 0.1, room=1).units
    assert unit in second.beat(rules, 0.1, room=1).units
    second.queue.clear()
    rules.failed(Failed("w1", unit, "OSError"), 0.2)
    assert "failed 2 times, last w1: OSError" in rules.locate(Locate("t", 1, 0, unit, 0.0), 0.2).reason
    first.queue.clear()
    assert unit in first.beat(rules, 1.5, room=1).units


def test_a_new_coordinator_relearns_and_begins_nothing_twice() -> None:
    old, hand = fresh()
    work(old, [hand], 0.0)
    old.ack(Ack("t", 1, 6), 0.0)
    work(old, [hand], 0.0)
    busy = Hand("w1", "a:1")
    old.ack(Ack("t", 1, 7), 0.0)
    busy.beat(old, 0.0)
    assert busy.queue
    before = set(hand.holds)
    new = Coordinator(OFFER, LIMITS, 10.0)
    assert not [unit for unit in hand.beat(new, 10.0).units if unit.stream == "train"]
    busy.beat(new, 10.0, room=0)
    assert set(hand.holds) == before
    assert locate(new, train(8, 0), 10.5, step=8) == "a:0"
    granted = hand.beat(new, 11.0, room=4).units
    assert not set(granted) & (set(busy.queue) | before)


def test_without_a_trainer_production_begins_once_nobody_can_be_unheard() -> None:
    rules = Coordinator(OFFER, LIMITS, 0.0)
    hand = Hand("w0", "a:0")
    work(rules, [hand], 1.0)
    assert set(hand.holds) == KEPT
    work(rules, [hand], 5.5)
    assert train(0, 0) in hand.holds
    assert len(hand.holds) == len(KEPT) + 10


def test_a_unit_in_hand_when_the_last_trainer_leaves_is_not_kept_for_nobody() -> None:
    # Right after the coordinator's start, and long after it.
    for now in (0.2, 50.0):
        rules, hand = fresh()
        while len(hand.holds) < 5:
            hand.beat(rules, now)
            hand.finish(rules, now)
        assert hand.queue
        rules.goodbye(Goodbye("t", 1), now)
        for _ in range(3):
            granted = hand.beat(rules, now + 0.1)
            assert not [unit for unit in granted.units if unit.stream == "train"]
        assert not [unit for unit in hand.queue + hand.holds if unit.stream == "train"]
        assert not rules.register(Register("w0", "a:0", "p", train(1, 0), SIZE, 4, 0), now + 0.2).accepted
        status = rules.status(now + 0.3)
        assert status["trainers"] == {} and status["units_ahead"] == status["bytes_ahead"] == status["leases"] == 0
        # Another trainer that comes is served.
        rules.hello(Hello("u", 1, 0), now + 1.0)
        assert train(0, 0) in hand.beat(rules, now + 1.0).units


def test_a_goodbye_to_a_new_coordinator_ends_production_unless_others_were_given_units() -> None:
    for others in (False, True):
        old, hand = fresh()
        work(old, [hand], 0.0)
        assert locate(old, train(0, 0), 0.0) == "a:0"
        if others:
            old.hello(Hello("u", 1, 3), 0.0)
            old.locate(Locate("u", 1, 3, train(3, 0), 0.0), 0.0)
        new = Coordinator(OFFER, LIMITS, 10.0, old.switches.journal)
        hand.beat(new, 10.0)
        new.goodbye(Goodbye("t", 1), 10.1)
        hand.beat(new, 10.2)
        assert any(unit.stream == "train" for unit in hand.holds) == others


def test_a_full_worker_gets_only_what_is_waited_for_or_near() -> None:
    rules, hand = fresh()
    hand.beat(rules, 0.0, room=3)
    while hand.queue:
        hand.finish(rules, 0.0)
    granted = hand.beat(rules, 0.0, room=20, full=True).units
    assert granted == tuple(train(n // 3, n % 3) for n in range(6))


def test_two_trainers_at_one_place_of_the_plan_get_each_unit_made_once() -> None:
    rules, hand = Coordinator(OFFER, LIMITS, 0.0), Hand("w", "h:1")
    for name in ("a", "b"):
        rules.hello(Hello(name, 1, 4), 0.0)
    units = [unit for _ in range(2) for unit in hand.beat(rules, 1.0, room=9).units]
    assert len(units) == len(set(units)) and train(4, 0) in units


def test_two_trainers_share_the_horizon_by_nearness() -> None:
    rules, hand = fresh()
    rules.hello(Hello("u", 1, 100), 0.0)
    work(rules, [hand], 0.0)
    steps = [unit.step for unit in hand.holds if unit.stream == "train"]
    assert sorted(steps) == [0, 0, 0, 1, 1, 1, 100, 100, 100, 101, 101, 101]


class Fleet(RuleBasedStateMachine):
    """Workers die, freeze, fail and lie still; trainers advance, ack, go back; the coordinator is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.rules = Coordinator(OFFER, LIMITS, 0.0)
        self.hands = [Hand(f"w{n}", f"a:{n}") for n in range(3)]
        self.ports = 3
        self.incarnation = 1
        self.taken: list[UnitId] = []  # by this start of the trainer
        self.begin = 0
        self.rules.hello(Hello("t", 1, 0), 0.0)

    @property
    def step(self) -> int:
        return self.begin + len(self.taken) // OFFER.units

    @rule(which=st.integers(0, 2), full=st.booleans())
    def heartbeat(self, which: int, full: bool) -> None:
        hand = self.hands[which]
        if hand.frozen:
            return
        asked = set(self.rules.demand.asked)
        granted = hand.beat(self.rules, self.now, full=full)
        far = [u for u in granted.units if u not in asked and (self.rules.demand.distance(u) or 0) >= 2 * OFFER.units]
        assert not far or self.rules.ledger.ahead <= LIMITS.horizon_bytes
        assert not (far and full)

    @rule(which=st.integers(0, 2))
    def finish(self, which: int) -> None:
        hand = self.hands[which]
        if hand.queue and not hand.frozen:
            hand.finish(self.rules, self.now)

    @rule(which=st.integers(0, 2))
    def fail(self, which: int) -> None:
        hand = self.hands[which]
        if hand.queue and not hand.frozen:
            self.rules.failed(Failed(hand.name, hand.queue.pop(0), "Fault"), self.now)

    @rule(which=st.integers(0, 2))
    def kill(self, which: int) -> None:
        self.hands[which] = Hand(f"w{which}", f"a:{self.ports}")
        self.ports += 1

    @rule(which=st.integers(0, 2))
    def freeze_or_thaw(self, which: int) -> None:
        self.hands[which].frozen ^= True

    @rule(seconds=st.floats(0.0, 8.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def replace_coordinator(self) -> None:
        self.rules = Coordinator(OFFER, LIMITS, self.now)

    @rule()
    def pull(self) -> None:
        self.take()

    @rule()
    def ack(self) -> None:
        self.rules.ack(Ack("t", self.incarnation, self.step - 1), self.now)

    @precondition(lambda self: self.step > 0)
    @rule(steps=st.integers(1, 6))
    def go_back(self, steps: int) -> None:
        self.begin, self.taken = max(0, self.step - steps), []
        self.incarnation += 1
        self.rules.hello(Hello("t", self.incarnation, self.begin), self.now)

    def take(self) -> bool:
        unit = train(self.step, len(self.taken) % OFFER.units)
        address = locate(self.rules, unit, self.now, step=self.step, incarnation=self.incarnation)
        if not address:
            return False
        holder = next((hand for hand in self.hands if hand.address == address), None)
        if holder is None or holder.frozen or unit not in holder.holds:
            self.rules.lost(Lost(unit, address), self.now)
            return False
        self.taken.append(unit)
        return True

    @invariant()
    def books_balance(self) -> None:
        ledger = self.rules.ledger
        held = {unit: name for name, worker in ledger.workers.items() for unit in worker.holds}
        assert held == {unit: entry.worker for unit, entry in ledger.held.items()}
        assert ledger.bytes == sum(entry.bytes for unit, entry in ledger.held.items() if unit.stream == "train")
        assert not ledger.held.keys() & ledger.leased.keys()
        assert all(unit in ledger.workers[name].encodes for unit, name in ledger.leased.items())

    @invariant()
    def no_free_unit_is_out_of_sight(self) -> None:
        for trainer in self.rules.demand.trainers.values():
            for at in range(trainer.step * OFFER.units, trainer.cursor):
                assert at in trainer.holes or self.rules.ledger.busy(train(at // OFFER.units, at % OFFER.units))

    def teardown(self) -> None:
        """Once the faults end, the trainer gets every unit, and nothing stays that nobody needs."""
        for hand in self.hands:
            hand.frozen = False
        goal = self.step + 4
        for _ in range(400):
            self.now += 1.0
            for hand in self.hands:
                hand.beat(self.rules, self.now)
                if hand.queue:
                    hand.finish(self.rules, self.now)
            while self.step < goal and self.take():
                pass
            if self.step == goal:
                break
        assert self.step == goal
        self.rules.ack(Ack("t", self.incarnation, goal - 1), self.now)
        held = self.settled()
        assert len(held) == len(set(held))
        assert set(held) >= KEPT
        assert sorted(unit for unit in held if unit.stream == "train") == [
            train(n // 3, n % 3) for n in range(goal * 3, goal * 3 + 10)
        ]
        self.rules.goodbye(Goodbye("t", self.incarnation), self.now)
        assert set(self.settled()) == KEPT

    def settled(self) -> list[UnitId]:
        """What is held once all that is wanted is made."""
        for _ in range(40):
            self.now += 1.0
            for hand in self.hands:
                hand.beat(self.rules, self.now)
                while hand.queue:
                    hand.finish(self.rules, self.now)
        return [unit for hand in self.hands for unit in hand.holds]


Fleet.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
test_any_schedule_of_faults_loses_nothing_and_holds_nothing_for_ever = Fleet.TestCase
