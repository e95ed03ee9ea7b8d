"""The faults of tests/faults in full, under torchrun as it is. `make soak` runs them; runs/soak/report.json says it."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import test_layout as layouts
from tests.faults.conftest import Start
from tests.faults.plans import kills, told
from tests.faults.test_kill import LAYOUTS, RANKS, check_same_bits, settings
from tests.faults.test_stop import PHASES, TO, ask, check_saved

Report = Callable[..., None]

KILLS, KILL_STEPS, EVERY = 20, 60, 5
LATE = 3  # steps until a checkpoint is published, at most
LAYOUT_STEPS, LAYOUT_S = 100, 600.0
START_S = 120.0


@pytest.mark.timeout(4000)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_twenty_deaths_leave_the_same_bits(layout: str, start: Start, tmp_path: Path, report: Report) -> None:
    given = settings(LAYOUTS[layout], KILL_STEPS, EVERY)
    quiet = start(tmp_path / "quiet", RANKS, *given, forked=False)
    assert quiet.wait(START_S + KILL_STEPS) == 0, quiet.said()
    faults = kills(seed=100 + LAYOUTS[layout], count=KILLS, ranks=RANKS, steps=KILL_STEPS)
    job = start(tmp_path / "killed", RANKS, *given, faults=faults, restarts=KILLS, forked=False)
    assert job.wait(START_S * (KILLS + 1)) == 0, f"{told(faults)}\n{job.said()[-6000:]}"
    check_same_bits(job, quiet, faults, KILL_STEPS)
    lost = max(job.lost())
    assert lost <= EVERY + LATE, job.lost()
    moments = Counter(fault.moment for fault in faults)
    report(kills=len(job.struck()), moments=dict(moments), steps=KILL_STEPS, most_steps_lost=lost, bits="equal")


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("precision", layouts.TOLERANCE)
def test_layouts_train_alike_for_a_hundred_steps(precision: str, start: Start, tmp_path: Path, report: Report) -> None:
    first = start(tmp_path / "saved", 4, "mesh.tp=2", *layouts.settings(layouts.BEFORE, precision))
    assert first.wait(START_S) == 0, first.said()
    steps = layouts.settings(layouts.BEFORE + LAYOUT_STEPS, precision)
    reference = layouts.go_on(start, first.folder, "same", 4, "mesh.tp=2", *steps, deadline_s=LAYOUT_S)
    found = {}
    for name, (ranks, layout) in layouts.LAYOUTS.items():
        job = layouts.go_on(start, first.folder, name, ranks, *layout, *steps, deadline_s=LAYOUT_S)
        found[name] = layouts.check_same_course(job, reference, layouts.BEFORE, precision)
    report(steps=LAYOUT_STEPS, largest_relative_difference=found)


@pytest.mark.timeout(1800)
def test_every_addressee_at_every_moment_saves(start: Start, tmp_path: Path, report: Report) -> None:
    pairs = list(itertools.product(PHASES, TO))
    lost = Counter()
    for phase, to in pairs:
        job = ask(start, tmp_path / f"{phase} {to}", phase, to, "SIGTERM", "SIGTERM")
        check_saved(job)
        lost[job.done() - job.checkpoints()[-1]] += 1
    report(asked=len(pairs), saved=len(pairs), runs_by_finished_steps_lost=dict(lost))
