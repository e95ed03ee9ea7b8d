"""A signal to the launcher, to one rank or to all, at any moment: saved, at most one step lost, nothing left running.

Short: moments that differ most, the addressees in turn; `make soak` has all pairs.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Start
from tests.faults.job import Job, Producers
from tests.faults.planted import Fault

# What the run is at: the moment and step of the signal.
PHASES = {
    "warm-up": ("forward", 0),
    "data wait": ("data", 3),
    "forward": ("forward", 5),
    "backward": ("backward", 4),
    "save": ("write", 4),
    "validation": ("validation", 3),
    "rate switch": ("optimizer", 2),
}
TO = ("launcher", "rank", "all")
GRACE_S = 20.0  # far from forced, on a busy machine
RUN_S = 60.0


def settings() -> tuple[str, ...]:
    return (
        "mesh.tp=1",
        "train.steps=100000",
        "train.validate_every=4",
        f"train.grace_s={GRACE_S}",
        "schedule.total_steps=100000",
        "checkpoint.every=4",
    )


def ask(start: Start, folder: Path, phase: str, to: str, *signals: str) -> Job:
    """A job that is sent `signals`, one after the other, and has ended."""
    moment, step = PHASES[phase]
    faults = [Fault(name, moment, step, rank=1, to=to, delay_s=0.05 * count) for count, name in enumerate(signals)]
    job = start(folder, 2, *settings(), faults=faults)
    job.until(lambda: job.struck() or job.poll(), RUN_S)
    assert job.wait(GRACE_S + 10) != 0
    job.until(lambda: None if job.left() else True, GRACE_S)  # a launcher signalled twice does not wait for its ranks
    return job


def check_saved(job: Job) -> None:
    """The newest checkpoint is whole and holds all but at most the step that was being trained."""
    begun = max(job.samples(), default=-1)  # counted from 0; the batches of a step are made one step ahead
    newest = job.checkpoints()[-1]
    assert newest >= job.done() > 0 and newest >= begun - 1, f"{newest} saved, {begun} begun\n{job.said()[-3000:]}"
    job.state(newest)
    assert not [path for path in (job.folder / "checkpoints").iterdir() if path.name.startswith(".aside")]


def turns() -> list[Any]:
    """Every phase with one receiver; the short run has three that differ most."""
    marks = {phase: () if phase in ("data wait", "backward", "save") else pytest.mark.long for phase in PHASES}
    return [pytest.param(phase, TO[turn % 3], marks=marks[phase]) for turn, phase in enumerate(PHASES)]


@pytest.mark.parametrize(("phase", "to"), turns())
def test_sigterm_saves_and_ends(phase: str, to: str, start: Start, tmp_path: Path) -> None:
    job = ask(start, tmp_path, phase, to, "SIGTERM")
    check_saved(job)
    assert (job.status()["cause"], job.status()["code"]) == ("preempted", 143)


@pytest.mark.long
def test_a_signal_to_one_rank_ends_another_s_wait_for_data(start: Start, tmp_path: Path) -> None:
    own = Producers(tmp_path)
    try:
        fault = Fault("SIGTERM", "data", 3, rank=1, delay_s=8)  # by then what was pulled ahead is used up
        job = start(tmp_path / "run", 2, *own.overrides(wait_s=40), *settings(), faults=[fault])
        job.until(lambda: job.struck() or job.poll(), RUN_S)
    finally:
        own.stop()
    assert job.wait(8 + GRACE_S + 10) != 0
    assert (job.status()["cause"], job.status()["code"]) == ("preempted", 143), job.said()[-3000:]
    assert "without a save" not in job.status()["message"] and job.checkpoints()[-1] == job.done()


@pytest.mark.parametrize("to", ["launcher", *(pytest.param(to, marks=pytest.mark.long) for to in TO[1:])])
def test_a_second_sigterm_changes_nothing(to: str, start: Start, tmp_path: Path) -> None:
    check_saved(ask(start, tmp_path, "backward", to, "SIGTERM", "SIGTERM"))


@pytest.mark.parametrize("to", ["rank", pytest.param("all", marks=pytest.mark.long)])
def test_sigusr1_saves_and_ends_with_a_code_of_its_own(to: str, start: Start, tmp_path: Path) -> None:
    job = ask(start, tmp_path, "backward", to, "SIGUSR1")
    check_saved(job)
    assert (job.status()["cause"], job.status()["code"]) == ("saved on request", 138)
