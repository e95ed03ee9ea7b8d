"""How many workers are wanted: the rule on made-up histories."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.scaling import Scaler, Sight, busy_share


def sight(now: float, ahead: int = 50, fill: float = 0.7, waited: bool = False, busy: float = 0.8) -> Sight:
    return Sight(now, ahead, fill, waited, busy, workers=2)


def scaler() -> Scaler:
    return Scaler(2, 16, short_s=10.0, idle_s=100.0, settle_s=30.0)


def test_fewer_units_ahead_with_busy_workers_call_for_more() -> None:
    rule = scaler()
    assert [rule.look(sight(now, 40 - now, 0.4, busy=1.0)) for now in range(0, 10, 5)] == [2, 2]
    assert rule.look(sight(10, 30, 0.3, busy=1.0)) == 3


def test_a_trainer_that_waits_doubles_the_fleet_at_each_settled_look_up_to_the_most() -> None:
    rule, found = scaler(), []
    for now in range(0, 200, 5):
        found.append(rule.look(sight(now, 0, 0.0, waited=True, busy=1.0)))
    assert sorted(set(found)) == [2, 4, 8, 16]
    # A change has time to show: short_s of shortage and settle_s between two.
    assert found.index(4) == 2 and found.index(8) >= 8 and found == sorted(found)


def test_a_fleet_that_catches_up_by_itself_is_left_alone() -> None:
    rule = scaler()
    assert {rule.look(sight(now, now, 0.1, busy=1.0)) for now in range(0, 300, 5)} == {2}


def test_a_stall_that_workers_are_not_busy_in_is_no_reason_for_more() -> None:
    rule = scaler()
    assert {rule.look(sight(now, 10, 0.1, waited=True, busy=0.1)) for now in range(0, 300, 5)} == {2}


def test_a_horizon_full_for_long_sends_workers_away_few_at_a_time_down_to_the_least() -> None:
    rule = scaler()
    for now in range(0, 100, 5):
        rule.look(sight(now, 0, 0.0, waited=True, busy=1.0))
    assert rule.wanted == 16
    found = [rule.look(sight(now, 100, 1.0, busy=0.05)) for now in range(100, 3000, 5)]
    assert found[0] == 16 and found[-1] == 2 and found == sorted(found, reverse=True)
    assert list(dict.fromkeys(found))[:3] == [16, 12, 9]


def test_workers_that_were_busy_at_times_are_kept() -> None:
    rule = Scaler(1, 16, idle_s=100.0, settle_s=10.0)
    for now in range(0, 200, 5):
        rule.look(sight(now, 0, 0.0, waited=True, busy=1.0))
    found = [rule.look(sight(now, 100, 1.0, busy=0.55 if now % 50 else 0.1)) for now in range(200, 900, 5)]
    # 0.55 of 16 is the work of 9; a fleet of 12 is busy for three quarters of it.
    assert found[-1] < 16 and min(found) >= 1 and all(a - b <= 4 for a, b in pairwise(found))


def test_nothing_flaps_between_the_bounds() -> None:
    rule = scaler()
    for now in range(0, 60, 5):
        rule.look(sight(now, 0, 0.0, waited=True, busy=1.0))
    before = rule.wanted
    fills = [0.55, 0.85, 0.6, 0.89] * 100
    assert {rule.look(sight(60 + 5 * n, 50 + n % 3, fill, busy=0.7)) for n, fill in enumerate(fills)} == {before}


@given(
    looks=st.lists(st.tuples(st.integers(0, 99), st.floats(0, 1), st.booleans(), st.floats(0, 1)), max_size=60),
    least=st.integers(1, 5),
    more=st.integers(0, 20),
)
def test_whatever_is_seen_the_bounds_hold_and_no_change_is_more_than_double(
    looks: list[tuple[int, float, bool, float]], least: int, more: int
) -> None:
    rule = Scaler(least, least + more, short_s=5.0, idle_s=20.0, settle_s=5.0)
    last = rule.wanted
    for number, (ahead, fill, waited, busy) in enumerate(looks):
        wanted = rule.look(Sight(5.0 * number, ahead, fill, waited, busy, last))
        assert least <= wanted <= least + more and last / 2 <= wanted <= max(2 * last, last + 1)
        last = wanted


def test_the_busy_share_counts_workers_seen_twice_alone() -> None:
    before = {"a": {"making_seconds": 1.0, "idle_seconds": 1.0}, "b": {"making_seconds": 9.0}}
    now = {
        "a": {"making_seconds": 2.0, "idle_seconds": 4.0},
        "b": {"making_seconds": 1.0},
        "c": {"making_seconds": 5.0},
    }
    assert busy_share(before, now) == pytest.approx(0.25)
    assert busy_share({}, now) == 1.0
