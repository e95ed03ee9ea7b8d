"""Who knows what of the recipe journal: the coordinator's rules, a worker that follows, a trainer that learns."""

import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.source.plans import InForce, Plans
from producer.api.channel import RefusedError
from producer.api.protocol import (
    Ack,
    Goodbye,
    Granted,
    Hello,
    Lease,
    Locate,
    Located,
    Lost,
    Propose,
    Proposed,
    Register,
)
from producer.api.unit import UnitId
from producer.coordinator import Coordinator
from producer.follow import Follower
from producer.journal import Journal, JournalError, Line, first_line, successor, texts, to_text
from tests.unit.producer.farm import until
from tests.unit.producer.test_coordinator import LIMITS, OFFER, SIZE, fresh, locate, train, work

FIRST = first_line(OFFER)
SECOND = successor(FIRST, 2, 3, {"recipe": "second"})
THIRD = successor(SECOND, 5, 3, {"recipe": "third"})


def propose(rules: Coordinator, line: Line, now: float = 0.0) -> Proposed:
    return rules.propose(Propose(to_text(line)), now)


def lease(rules: Coordinator, now: float, plan: str, *, holding: tuple[UnitId, ...] = (), until: int = -1) -> Granted:
    return rules.lease(Lease("w0", "a:0", plan, "e", 20, holding=holding, until=until, bytes=SIZE), now)


def test_units_made_ahead_are_dropped_and_made_again_by_whoever_can() -> None:
    rules, hand = fresh()
    work(rules, [hand], 0.0)
    assert locate(rules, train(1, 0), 0.0) == "a:0"
    assert not propose(rules, replace(SECOND, from_step=1)).accepted
    assert propose(rules, SECOND).accepted
    late = [unit for unit in hand.holds if unit.stream == "train" and unit.step >= 2]
    told = lease(rules, 1.0, "p", holding=tuple(hand.holds))
    assert late and set(late) <= set(told.forget) and told.entries == texts([SECOND])
    assert not [unit for unit in told.units if unit.step >= 2], "it has not heard of the recipe of these"
    kept = tuple(unit for unit in hand.holds if unit not in told.forget)
    assert not lease(rules, 1.1, SECOND.id, holding=kept, until=2).units, "it compiles"
    again = lease(rules, 1.2, SECOND.id, holding=kept)
    assert set(late) <= set(again.units) and again.entries == ()
    assert not rules.register(Register("w0", "a:0", "p", late[0], SIZE, 4, 0), 1.3).accepted
    assert rules.register(Register("w0", "a:0", SECOND.id, late[1], SIZE, 4, 0), 1.3).accepted


def test_a_unit_is_located_with_the_plan_that_made_it() -> None:
    rules, hand = fresh()
    propose(rules, SECOND)
    lease(rules, 0.0, "p")

    def ask(unit: UnitId, handed: int = -1, plan: str = "") -> Located:
        return rules.locate(Locate("t", 1, 0, unit, 0.0, handed, plan), 0.0)

    assert [(ask(train(step, 0)).plan, ask(train(step, 0)).entry) for step in (1, 2)] == [("p", 0), (SECOND.id, 1)]
    assert ask(UnitId("validation", 0, 0)).plan == "p"
    assert ask(train(3, 0), 1, "p").plan == ask(train(3, 0), 2, SECOND.id).plan == SECOND.id
    for handed, plan in ((2, "p"), (1, SECOND.id), (0, "another")):
        with pytest.raises(RefusedError, match=f"trainer t: it trained step {handed} by plan {plan}"):
            ask(train(3, 0), handed, plan)
    assert not hand.holds


def test_a_new_coordinator_takes_only_what_the_journal_makes() -> None:
    old, hand = fresh()
    work(old, [hand], 0.0)
    journal = Journal(None, FIRST)
    journal.append(SECOND)
    new = Coordinator(OFFER, LIMITS, 10.0, journal)
    told = lease(new, 10.0, "p", holding=tuple(hand.holds))
    assert sorted(told.forget) == sorted(unit for unit in hand.holds if unit.stream == "train" and unit.step >= 2)
    with pytest.raises(RefusedError, match="its plan is nonsense, the coordinator's is"):
        lease(new, 10.0, "nonsense")


def test_what_was_handed_out_is_past_until_its_trainer_goes_back_or_away() -> None:
    rules, hand = fresh()
    rules.hello(Hello("u", 1, 0), 0.0)
    work(rules, [hand], 0.0)
    for trainer, step in (("t", 1), ("u", 3), ("u", 0)):
        assert rules.locate(Locate(trainer, 1, 0, train(step, 0), 0.0), 0.0).address
    assert rules.recipes(0.0).least == 4
    rules.hello(Hello("u", 1, 0), 0.0)  # another group of the same start
    assert rules.recipes(0.0).least == 4
    rules.goodbye(Goodbye("u", 1), 0.0)
    assert rules.recipes(0.0).least == 2
    rules.hello(Hello("t", 2, 1), 0.0)
    assert rules.recipes(0.0).least == 1
    assert propose(rules, replace(successor(FIRST, 1, 3, {}))).accepted and rules.recipes(0.0).least == 1


def test_every_message_of_an_older_start_is_refused_also_by_a_new_coordinator_and_after_a_goodbye() -> None:
    rules, hand = fresh()
    rules.hello(Hello("t", 2, 0), 1.0)
    work(rules, [hand], 1.0)
    rules.goodbye(Goodbye("t", 2), 1.0)
    for one in (rules, Coordinator(OFFER, LIMITS, 2.0, rules.switches.journal)):
        for say, message in (
            (one.hello, Hello("t", 1, 0)),
            (one.locate, Locate("t", 1, 0, train(0, 0), 0.0)),
            (one.ack, Ack("t", 1, 5)),
            (one.lost, Lost(train(0, 0), "a:0", "t", 1)),
            (one.goodbye, Goodbye("t", 1)),
        ):
            with pytest.raises(RefusedError, match="start 1 was replaced by 2"):
                say(message, 3.0)  # type: ignore[operator]


def test_after_a_goodbye_nothing_is_held_or_made_until_somebody_comes() -> None:
    rules, hand = fresh()
    work(rules, [hand], 0.0)
    rules.goodbye(Goodbye("t", 1), 1.0)
    work(rules, [hand], 1.0)
    assert not [unit for unit in hand.holds if unit.stream == "train"] and rules.ledger.bytes == 0
    rules.status(1.0)
    rules.hello(Hello("t", 2, 4), 2.0)
    work(rules, [hand], 2.0)
    assert train(4, 0) in hand.holds


def test_a_coordinator_that_cannot_know_how_far_trainers_are_takes_nothing_for_a_while() -> None:
    journal = Journal(None, FIRST)
    journal.certain = False
    rules = Coordinator(OFFER, LIMITS, 100.0, journal)
    answer = propose(rules, SECOND, 130.0)
    assert not answer.accepted and answer.wait_s == 30.0 and "does not know yet" in answer.reason
    # A group says by itself what it has, whoever gave it.
    rules.locate(Locate("t", 1, 3, train(7, 0), 0.0, 6, "p"), 140.0)
    assert rules.recipes(165.0).least == 7
    assert propose(rules, successor(FIRST, 7, 3, {}), 165.0).accepted


def test_a_worker_compiles_lines_in_order_and_tries_again_where_one_cannot_be_yet() -> None:
    done: list[int] = []
    go, failures = threading.Event(), [2]

    def adopt(line: Line) -> None:
        go.wait(30)
        if line.number == 2 and failures[0]:
            failures[0] -= 1
            raise FileNotFoundError("its index is not here yet")
        done.append(line.number)

    follower = Follower("w", OFFER, adopt)
    assert (follower.plan, follower.until) == ("p", -1)
    changed = follower.tell(texts([SECOND]))
    assert [changed(train(step, 0)) for step in (1, 2, 9)] == [False, True, True] and not changed(UnitId("empty", 0, 0))
    assert (follower.plan, follower.until, follower.plan_of(train(1, 0))) == (SECOND.id, 2, "p")
    assert not follower.tell(texts([SECOND]))(train(9, 0)), "told twice"
    follower.tell(texts([THIRD]))
    with pytest.raises(JournalError, match="does not follow"):
        follower.tell(texts([replace(THIRD, number=3)]))
    go.set()
    until(lambda: follower.until == 5)
    assert follower.plan_of(train(5, 0)) == THIRD.id
    until(lambda: follower.until == -1)
    assert done == [1, 2]
    follower.stop()


@given(
    starts=st.lists(st.integers(0, 30), min_size=1, max_size=4).map(sorted),
    steps=st.lists(st.integers(0, 40), max_size=30),
)
def test_a_trainer_learns_the_plan_of_each_step_in_any_order(starts: list[int], steps: list[int]) -> None:
    def truth(step: int) -> InForce:
        entry = max((n for n, start in enumerate(starts, 1) if start <= step), default=0)
        return InForce(f"plan {entry}", entry)

    plans = Plans(0, *truth(0))
    for step in steps:
        assert plans.learn(step, *truth(step))
    for step in steps:
        assert plans.at(step) == truth(step)
        wrong = truth(step)._replace(plan="another")
        assert not plans.learn(step, *wrong)
        assert plans.at(step) == truth(step)


def test_a_plan_that_goes_back_is_a_contradiction() -> None:
    plans = Plans(10, "a", 1)
    assert plans.learn(10, "b", 2)  # nothing of step 10 was handed out when "a" was said
    assert plans.learn(12, "b", 2) and not plans.learn(13, "a", 1) and not plans.learn(11, "c", 2)
    assert plans.at(40) == InForce("b", 2)
