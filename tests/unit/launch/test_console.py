"""The training view: plain lines in a file, one redrawn view on a terminal."""

import dataclasses
import io
import math
from collections.abc import Iterator

import pytest
from rich.console import Console

from consumer.metrics import CheckpointReport, Part, PicturesReport, StepReport, ValidationReport
from launch.console import TrainingView, duration


def report(step: int, loss: float = 0.5, applied: bool = True, mfu: float | None = 0.25) -> StepReport:
    levels = {f"{k / 10:.1f}-{(k + 1) / 10:.1f}": Part(k / 10, 2) for k in range(10)}
    buckets = {"256x320": Part(loss, 4), "320x256": Part(2 * loss, 4)}
    split = {"forward": 0.5, "backward": 1.0}
    skipped = "" if applied else "gradient norm inf"
    return StepReport(
        step, loss, 1e-4, 1.5, applied, 8, 1000, 2e15, 2.0, 0.5, mfu, 7_000_000_000, levels, buckets, split, skipped
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every look at the clock is three seconds after the last."""
    ticks = iter(range(0, 10_000, 3))
    with monkeypatch.context() as patched:
        patched.setattr("launch.console.time.monotonic", lambda: float(next(ticks)))
        yield


def plain(steps: int, done: int = 0, every: int = 5) -> tuple[TrainingView, io.StringIO]:
    out = io.StringIO()
    return TrainingView(steps, done, every, Console(file=out, width=40)), out


def test_elsewhere_than_on_a_terminal_every_fifth_step_is_one_line(clock: None) -> None:
    view, out = plain(12)
    for step in range(1, 13):
        view(report(step))
    view.close()
    numbers = "loss 0.5000  4.0 images/s  500 tokens/s  MFU 25.0%  data wait 25.0%  memory 7.0 GB"
    assert out.getvalue().splitlines() == [
        f"step {step}/12  {numbers}  {left} s left" for step, left in ((5, 21), (10, 6), (12, 0))
    ]


def test_numbers_that_are_not_known_are_not_shown(clock: None) -> None:
    view, out = plain(10, done=4)
    view(StepReport(5, 0.5, 1e-4, 1.5, True, 8, 1000, 2e15, 2.0, 0.5))
    assert out.getvalue() == "step 5/10  loss 0.5000  4.0 images/s  500 tokens/s  data wait 25.0%  15 s left\n"


def test_what_recompute_adds_is_shown_beside_the_model_s_share(clock: None) -> None:
    view, out = plain(10)
    view(dataclasses.replace(report(5), hfu=0.3))
    assert "MFU 25.0%  HFU 30.0%  data wait" in out.getvalue()


def test_validations_pictures_and_skipped_steps_are_said_at_once(clock: None) -> None:
    view, out = plain(10)
    view(ValidationReport(3, 0.75, 9, 1.0))
    view(PicturesReport(3, "run/step-3[a].png", ("a cat",), 1.0))
    view(report(4, applied=False))
    assert out.getvalue().splitlines() == [
        "step 3/10  validation loss 0.7500 (9 samples)",
        "step 3/10  pictures run/step-3[a].png",
        "step 4/10  skipped gradient norm inf",
    ]


def test_a_training_that_goes_back_counts_from_there(clock: None) -> None:
    view, out = plain(100, every=1)
    for step in (1, 2, 3, 2, 3):
        view(report(step))
    lefts = [line.rsplit("  ", 1)[1] for line in out.getvalue().splitlines()]
    assert lefts == ["5 min left", "5 min left", "5 min left", "? left", "5 min left"]


def test_a_terminal_shows_one_view_of_all() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, height=30, color_system=None)
    view = TrainingView(10, 0, 5, console)
    for step in range(1, 5):
        view(report(step, loss=step / 8, applied=step != 2))
    view(ValidationReport(4, 0.75, 9, 1.0))
    view(PicturesReport(4, "run/step-4[a].png", ("a cat",), 1.0))
    view(CheckpointReport(4, True, "", 2.0, 0.125, 3000))
    view.close()
    last = [line.strip() for line in out.getvalue().split("step 4/10")[-1].splitlines() if line.strip()]
    assert "40%" in last[0] and "left" in last[0]
    shown = "\n".join(last[1:])
    for said in (
        "loss 0.5000  4.0 images/s  500 tokens/s  MFU 25.0%  data wait 25.0%  memory 7.0 GB",
        "2.00 s  norm 1.5  rate 0.0001  forward 33%  backward 67%",
        "0.0 ▁▂▃▃▄▅▆▆▇█ 1.0  loss 0.0000 to 0.9000",
        "256x320 0.3125  320x256 0.6250",
        "not applied  1 since the start",
        "step 2: gradient norm inf",
        "step 4: loss 0.7500 (9 samples)",
        "step 4: run/step-4[a].png",
        "step 4: in 2.0 s, training waited 0.12 s",
    ):
        assert said in shown


def test_losses_that_are_no_numbers_spoil_no_view() -> None:
    out = io.StringIO()
    view = TrainingView(10, 0, 5, Console(file=out, force_terminal=True, width=120, color_system=None))
    wrong = {"0.0-0.1": Part(math.nan, 1), "0.1-0.2": Part(math.inf, 1), "0.2-0.3": Part(0.5, 1)}
    view(dataclasses.replace(report(1, loss=math.nan, applied=False), loss_by_level=wrong))
    view.close()
    assert "0.2 ▁ 0.3  loss 0.5000 to 0.5000" in out.getvalue() and "256x320 nan" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (89, "89 s"), (600, "10 min"), (3599, "1 h 0 min"), (7260, "2 h 1 min"), (200_000, "2 d 8 h")],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
