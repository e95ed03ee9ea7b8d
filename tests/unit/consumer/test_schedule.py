"""The learning rate is the step's alone."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from consumer.schedule import ScheduleConfig, rate


def test_warm_up_rises_evenly_to_the_peak() -> None:
    config = ScheduleConfig(warmup_steps=4)
    assert [rate(config, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_without_warm_up_a_constant_rate_is_the_peak_from_the_first_step() -> None:
    assert {rate(ScheduleConfig(), step) for step in range(1000)} == {1.0}


def test_cosine_passes_half_of_its_fall_halfway_and_ends_at_the_minimum() -> None:
    config = ScheduleConfig(kind="cosine", warmup_steps=10, total_steps=110, min_ratio=0.2)
    assert rate(config, 10) == 1.0
    assert math.isclose(rate(config, 60), 0.6)
    assert math.isclose(rate(config, 35), 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)
    assert rate(config, 110) == rate(config, 10_000) == 0.2


def test_wsd_is_constant_until_its_last_steps() -> None:
    config = ScheduleConfig(kind="wsd", warmup_steps=10, total_steps=100, decay_steps=16, min_ratio=0.1)
    assert {rate(config, step) for step in range(9, 85)} == {1.0}
    assert math.isclose(rate(config, 88), 0.1 + 0.9 * 0.5)
    assert rate(config, 99) < 0.15
    assert rate(config, 100) == rate(config, 101) == 0.1


configs = st.builds(
    lambda kind, warmup, rest, decay, ratio: ScheduleConfig(
        kind=kind,
        warmup_steps=warmup,
        total_steps=warmup + decay + rest,
        decay_steps=decay if kind == "wsd" else 0,
        min_ratio=ratio,
    ),
    st.sampled_from(["constant", "cosine", "wsd"]),
    st.integers(0, 50),
    st.integers(1, 100),
    st.integers(1, 50),
    st.floats(0, 1),
)


@given(configs)
def test_no_schedule_leaves_its_bounds_or_rises_after_warm_up(config: ScheduleConfig) -> None:
    rates = [rate(config, step) for step in range(config.total_steps + 10)]
    assert all(0 < value <= 1 for value in rates[: config.total_steps])
    after = rates[config.warmup_steps :]
    assert all(later <= earlier for earlier, later in pairwise(after))
    assert min(after) >= config.min_ratio - 1e-12


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "cosine", "total_steps": 10, "warmup_steps": 10}, "10 must exceed warmup_steps 10"),
        ({"kind": "cosine"}, "schedule.total_steps: 0"),
        ({"kind": "wsd", "total_steps": 10}, "schedule.decay_steps: 0 with kind wsd"),
        ({"kind": "cosine", "total_steps": 10, "decay_steps": 3}, "schedule.decay_steps: 3 with kind cosine"),
        ({"min_ratio": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_that_make_no_schedule_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ScheduleConfig(**settings)
