"""Ranks killed at any moment, under torchrun's restarts: what comes out is what an undisturbed run gives, to the bit.

Short: three deaths a layout, launchers forked. `make soak` has twenty, under torchrun as it is (tests/soak).
"""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.conftest import Start
from tests.faults.job import Job
from tests.faults.plans import kills, told
from tests.faults.planted import Fault

LAYOUTS = {"dp4": 1, "tp2 x dp2": 2}
STEPS, RANKS = 12, 4
START_S = 60.0  # for one start and its steps, on a busy machine


def settings(tp: int, steps: int = STEPS, every: int = 3) -> tuple[str, ...]:
    return (
        f"mesh.tp={tp}",
        "optim.overlap_grads=true",
        "optim.overlap_params=true",
        f"train.steps={steps}",
        "train.validate_every=5",
        f"schedule.total_steps={steps}",
        f"checkpoint.every={every}",
        "checkpoint.keep=2",
    )


def check_same_bits(job: Job, quiet: Job, faults: Sequence[Fault], steps: int) -> None:
    """`job` met all `faults` and left what the undisturbed one did."""
    assert len(job.struck()) == len(faults), f"planned {told(faults)}\nstruck {job.struck()}\n{job.said()[-4000:]}"
    assert job.series() == quiet.series()
    assert job.series("validation") == quiet.series("validation")
    assert job.samples() == quiet.samples()
    assert job.state(steps) == quiet.state(steps)
    assert not [path for path in (job.folder / "checkpoints").iterdir() if not path.name.startswith("step-")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_killed_at_any_moment_leave_the_same_bits(layout: str, start: Start, tmp_path: Path) -> None:
    given = settings(LAYOUTS[layout])
    quiet = start(tmp_path / "quiet", RANKS, *given)
    assert quiet.wait(START_S) == 0, quiet.said()
    assert [report["step"] for report in quiet.series()] == list(range(1, STEPS + 1))
    assert {step: len(units) for step, units in quiet.samples().items()} == dict.fromkeys(range(STEPS), 4)
    faults = kills(seed=LAYOUTS[layout], count=3, ranks=RANKS, steps=STEPS)
    job = start(tmp_path / "killed", RANKS, *given, faults=faults, restarts=len(faults))
    assert job.wait(START_S * (1 + len(faults))) == 0, f"{told(faults)}\n{job.said()[-6000:]}"
    check_same_bits(job, quiet, faults, STEPS)
