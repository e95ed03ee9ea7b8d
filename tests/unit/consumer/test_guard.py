import json
import math
import random
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.endings import Cause
from consumer.guard import Guard, GuardConfig, Verdict, record_bad
from producer.api.unit import UnitId

NAN, INF = math.nan, math.inf
bad_numbers = st.sampled_from([(NAN, 1.0), (1.0, NAN), (INF, 1.0), (1.0, INF), (-INF, 1.0), (NAN, NAN)])
good_numbers = st.tuples(st.floats(0.01, 100.0), st.floats(0.01, 100.0))
rules = st.sampled_from(["off", "skip", "roll back"])


def small(rule: str = "skip", **over: object) -> GuardConfig:
    return GuardConfig(**{"window": 8, "spikes": rule, "bad_limit": 3} | over)


def calm(steps: int, seed: int = 0) -> list[tuple[float, float]]:
    """Losses that fall slowly and norms, both with log-normal noise of 0.1."""
    draw = random.Random(seed)
    return [(math.exp(draw.gauss(-(step**0.2), 0.1)), math.exp(draw.gauss(-(step**0.1), 0.1))) for step in range(steps)]


def warm(config: GuardConfig) -> Guard:
    """A guard behind a full window of calm steps."""
    guard = Guard(config)
    for step, numbers in enumerate(calm(config.window)):
        assert guard.judge(step, *numbers).action == "apply"
    return guard


@given(st.lists(st.one_of(good_numbers, bad_numbers), max_size=60), rules)
def test_what_is_not_finite_is_never_applied(series: list[tuple[float, float]], rule: str) -> None:
    guard = Guard(small(rule, bad_limit=100))
    for step, numbers in enumerate(series):
        verdict = guard.judge(step, *numbers)
        if not all(map(math.isfinite, numbers)):
            assert verdict.action == "skip" and f"step {step}" in verdict.reason


@given(st.lists(st.one_of(good_numbers, bad_numbers), min_size=1, max_size=60), rules, st.data())
def test_a_resumed_guard_judges_as_one_that_was_never_stopped(
    series: list[tuple[float, float]], rule: str, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(series) - 1))
    whole, before = Guard(small(rule)), Guard(small(rule))
    verdicts = [whole.judge(step, *numbers) for step, numbers in enumerate(series)]
    first = [before.judge(step, *numbers) for step, numbers in enumerate(series[:cut])]
    after = Guard(small(rule))
    after.load(json.loads(json.dumps(before.state(), allow_nan=False)))
    rest = [after.judge(step, *numbers) for step, numbers in enumerate(series[cut:], cut)]
    assert first + rest == verdicts
    assert after.state() == whole.state()


@given(st.lists(st.one_of(good_numbers, bad_numbers), max_size=60))
def test_bad_numbers_change_no_verdict_on_good_ones(series: list[tuple[float, float]]) -> None:
    config = small(bad_limit=100)
    mixed, clean = Guard(config), Guard(config)
    for step, numbers in enumerate(series):
        verdict = mixed.judge(step, *numbers)
        if all(map(math.isfinite, numbers)):
            assert clean.judge(step, *numbers).action == verdict.action


@pytest.mark.parametrize("numbers", [(NAN, 1.0), (1.0, NAN), (INF, 1.0), (1.0, INF)])
def test_one_more_bad_step_in_a_row_than_is_borne_stops_with_its_cause(numbers: tuple[float, float]) -> None:
    guard = warm(small("off"))
    actions = [guard.judge(8 + step, *numbers) for step in range(4)]
    assert [verdict.action for verdict in actions] == ["skip", "skip", "skip", "stop"]
    assert actions[-1].cause is Cause.NUMBERS
    assert "step 11" in actions[-1].reason and "4 steps of the last 8" in actions[-1].reason
    assert guard.skipped == 4


def test_bad_steps_that_alternate_with_good_ones_stop_too_and_rare_ones_do_not() -> None:
    guard = Guard(small("off"))
    said = [guard.judge(step, NAN if step % 2 else 1.0, 1.0).action for step in range(8)]
    assert said == ["apply", "skip"] * 3 + ["apply", "stop"]
    rare = Guard(small("off"))
    assert "stop" not in {rare.judge(step, NAN if step % 4 == 0 else 1.0, 1.0).action for step in range(400)}


def test_a_limit_of_nothing_stops_at_once() -> None:
    assert Guard(small(bad_limit=0)).judge(0, NAN, 1.0).action == "stop"


@pytest.mark.parametrize("which", ["loss", "gradient norm"])
def test_a_spike_of_ten_deviations_is_skipped_and_the_next_clean_step_applied(which: str) -> None:
    guard = warm(GuardConfig(spikes="skip"))
    loss, norm = calm(129)[128]
    before = guard.state()
    window = before["losses" if which == "loss" else "norms"]
    high = math.exp(fmean(window) + 10 * pstdev(window))
    spike = (high, norm) if which == "loss" else (loss, high)
    verdict = guard.judge(128, *spike)
    assert verdict.action == "skip" and which in verdict.reason and "10.0 deviations above" in verdict.reason
    after = guard.state()
    assert (after["losses"], after["norms"]) == (before["losses"], before["norms"])
    assert guard.judge(129, loss, norm).action == "apply"


def test_a_spike_is_applied_when_the_rule_is_off_and_before_the_window_is_full() -> None:
    assert warm(small("off")).judge(8, 1e9, 1e9).action == "apply"
    guard = Guard(small("skip"))
    for step in range(7):
        assert guard.judge(step, 1.0, 1.0).action == "apply"
    assert guard.judge(7, 1e9, 1.0).action == "apply"


def test_ten_thousand_calm_steps_raise_no_alarm() -> None:
    guard = Guard(GuardConfig(spikes="skip"))
    assert all(guard.judge(step, *numbers).action == "apply" for step, numbers in enumerate(calm(10_000, seed=7)))


def test_equal_numbers_and_a_fall_are_no_spike() -> None:
    guard = Guard(small("skip", floor=0.0))
    assert all(guard.judge(step, 1.0, 1.0).action == "apply" for step in range(20))
    assert guard.judge(20, 1e-9, 1e-9).action == "apply"
    assert Guard(small("skip")).judge(0, 0.0, 0.0).action == "apply"  # a step whose units were all empty


def test_a_level_that_stays_high_stops_for_a_person_to_look() -> None:
    guard = warm(small("skip"))
    said = [guard.judge(step, 100.0, 1.0) for step in range(8, 12)]
    assert [verdict.action for verdict in said] == ["skip"] * 3 + ["stop"]
    assert said[-1].cause is Cause.NO_PROGRESS


def drive(guard: Guard, steps: int, spikes: dict[int, int], saved_every: int = 4) -> list[tuple[int, str]]:
    """A loop that goes back; step -> how many times it spikes when it is trained."""
    saved, step, said = {0: guard.state()}, 0, []
    while step < steps:
        if step % saved_every == 0:
            saved[step] = json.loads(json.dumps(guard.state()))
        loss, norm = calm(steps)[step]
        left = spikes.get(step, 0)
        verdict: Verdict = guard.judge(step, loss * (1e3 if left else 1), norm)
        said.append((step, verdict.action))
        if verdict.action == "stop":
            assert verdict.cause is Cause.NO_PROGRESS
            return said
        if verdict.action == "roll back":
            spikes[step] = left - 1
            step = max(saved)
            guard.went_back(saved[step])
            continue
        step += 1
    return said


def test_going_back_leaves_the_steps_that_spiked_out_when_they_are_reached_again() -> None:
    said = drive(Guard(small("roll back", before=1)), 16, {10: 1})
    assert said[10:] == [
        *[(10, "roll back"), (8, "apply"), (9, "skip"), (10, "skip")],
        *[(step, "apply") for step in range(11, 16)],
    ]


def test_it_goes_back_so_many_times_and_then_stops() -> None:
    said = drive(Guard(small("roll back")), 30, {10: 1, 11: 1, 12: 1})
    assert [step for step, action in said if action == "roll back"] == [10, 11]
    assert said[-1] == (12, "stop")
    assert drive(Guard(small("roll back", rollbacks=0)), 30, {10: 1})[-1] == (10, "stop")


def test_times_gone_back_are_forgotten_once_training_is_well_past() -> None:
    said = drive(Guard(small("roll back", rollbacks=1)), 60, {10: 1, 25: 1, 40: 1})
    assert [step for step, action in said if action == "roll back"] == [10, 25, 40]
    assert said[-1] == (59, "apply")


def test_a_kill_right_after_going_back_goes_back_again_to_the_same_end() -> None:
    # Nothing was saved since: the state at step 8 knows of no spike, and numbers are what they were.
    quiet = drive(Guard(small("roll back")), 16, {10: 1})
    killed = Guard(small("roll back"))
    for step, numbers in enumerate(calm(16)[:8]):
        killed.judge(step, *numbers)
    again = Guard(small("roll back"))
    again.load(json.loads(json.dumps(killed.state())))
    said = [again.judge(step, *calm(16)[step]).action for step in (8, 9)]
    assert said == ["apply", "apply"]
    assert again.judge(10, calm(16)[10][0] * 1e3, 1.0).action == "roll back"
    again.went_back(killed.state())
    rest = [(step, again.judge(step, *calm(16)[step]).action) for step in range(8, 16)]
    assert rest == quiet[11:]


def test_a_bad_steps_samples_are_written_down_with_their_losses(tmp_path: Path) -> None:
    units = [UnitId("train", 3, 0), UnitId("train", 3, 2)]
    for step in (3, 4):
        record_bad(tmp_path / "run", 1, step, "loss nan", units, [["a/1", "a/2"], []], [[0.5, NAN], []])
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad-steps-rank-1.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4]
    assert lines[0]["reason"] == "loss nan" and lines[0]["rank"] == 1
    assert lines[0]["units"] == [
        {"unit": "train step 3 unit 0", "keys": ["a/1", "a/2"], "losses": [0.5, "nan"]},
        {"unit": "train step 3 unit 2", "keys": [], "losses": []},
    ]


def test_a_record_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    record_bad(tmp_path / "file", 0, 5, "loss nan", [UnitId("train", 5, 0)], [["a/9"]], [[NAN]])
    assert "a/9" in caplog.text
