"""A run that goes on with another layout trains on the same samples in the same order, to the same losses."""

import shutil
from pathlib import Path

import pytest

from tests.faults.conftest import Start
from tests.faults.job import Job

# Layout: ranks, and its settings.
LAYOUTS = {
    "tp4": (4, ("mesh.tp=4",)),
    "tp1 x dp4": (4, ("mesh.tp=1",)),
    "tp2 sp": (2, ("mesh.tp=2", "mesh.sp=true")),
}
BEFORE, AFTER = 4, 10
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}  # of a loss, relative
RUN_S = 90.0


def settings(steps: int, precision: str = "fp32") -> tuple[str, ...]:
    return (
        f"optim.precision={precision}",
        f"train.steps={steps}",
        "schedule.total_steps=1000",
        f"checkpoint.every={steps}",
    )


def check_same_course(job: Job, reference: Job, saved: int, precision: str = "fp32") -> float:
    """`job` went on from step `saved` as the reference did; the largest relative difference of a loss."""
    assert job.samples() == {step: units for step, units in reference.samples().items() if step >= saved}
    pairs = list(zip(job.series(), reference.series(), strict=True))
    assert all(ours["samples"] == theirs["samples"] for ours, theirs in pairs)
    worst = max(abs(ours["loss"] / theirs["loss"] - 1) for ours, theirs in pairs)
    assert worst <= TOLERANCE[precision], [(ours["step"], ours["loss"], theirs["loss"]) for ours, theirs in pairs]
    return float(worst)


@pytest.fixture
def saved(start: Start, tmp_path: Path) -> Path:
    """What TP 2 x DP 2 saved after the first steps."""
    job = start(tmp_path / "saved", 4, "mesh.tp=2", *settings(BEFORE))
    assert job.wait(RUN_S) == 0, job.said()
    return job.folder


def go_on(start: Start, saved: Path, name: str, ranks: int, *given: str, deadline_s: float = RUN_S) -> Job:
    folder = saved.parent / name
    for part in ("checkpoints", "metrics"):
        shutil.copytree(saved / part, folder / part)
    job = start(folder, ranks, *given)
    assert job.wait(deadline_s) == 0, job.said()
    return job


def test_other_layouts_go_on_with_the_same_samples_and_losses(start: Start, saved: Path) -> None:
    reference = go_on(start, saved, "same", 4, "mesh.tp=2", *settings(AFTER))
    assert f"continuing from {reference.folder}" in reference.said()
    for name, (ranks, layout) in LAYOUTS.items():
        job = go_on(start, saved, name, ranks, *layout, *settings(AFTER))
        check_same_course(job, reference, BEFORE)
