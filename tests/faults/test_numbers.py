"""NaN, infinity and spikes in a running job: no weight moves, the samples are named, and it goes on or stops."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Start
from tests.faults.job import Job
from tests.faults.planted import Fault

RUN_S = 60.0
BAD = 4  # the step, counted from 0, whose numbers are bad


def settings(steps: int, *more: str) -> tuple[str, ...]:
    return ("mesh.tp=1", f"train.steps={steps}", "schedule.total_steps=1000", "checkpoint.every=1000", *more)


def finished(job: Job) -> Job:
    assert job.wait(RUN_S) == 0, job.said()
    return job


def written_out(job: Job) -> list[dict[str, Any]]:
    paths = sorted((job.folder / "metrics").glob("bad-steps-rank-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("act", "moment", "rank"),
    [
        ("nan", "forward", 0),
        pytest.param("inf", "forward", 1, marks=pytest.mark.long),
        pytest.param("nan", "reduce", 1, marks=pytest.mark.long),
        ("inf", "reduce", 0),
    ],
)
def test_bad_numbers_on_one_rank_move_no_weight_and_the_next_step_counts(
    act: str, moment: str, rank: int, start: Start, tmp_path: Path
) -> None:
    before = finished(start(tmp_path / "before", 2, *settings(BAD)))
    fault = Fault(act, moment, BAD, rank)
    job = finished(start(tmp_path / "bad", 2, *settings(BAD + 1), faults=[fault]))
    assert len(job.struck()) == 1
    ours, theirs = job.state(BAD + 1), before.state(BAD)
    assert ours["files"] == theirs["files"], "weights, moments or average changed"
    assert ours["updates"] == theirs["updates"]
    assert [report["applied"] for report in job.series()] == [True] * BAD + [False]
    # The step's samples, each rank its own.
    lines = written_out(job)
    keys = {key for line in lines for unit in line["units"] for key in unit["keys"]}
    assert {(line["step"], line["rank"]) for line in lines} == {(BAD, 0), (BAD, 1)}
    assert keys == {key for found, _ in job.samples()[BAD].values() for key in found}
    # It goes on from there, and what was skipped is remembered.
    extra = json.loads((job.folder / "checkpoints" / f"step-{BAD + 1:08d}" / "index.json").read_text())["extra"]
    assert extra["guard"]["skipped"] == 1
    again = finished(start(tmp_path / "bad", 2, *settings(BAD + 3)))
    assert [report["applied"] for report in again.series()] == [True] * BAD + [False, True, True]


def test_bad_numbers_past_the_limit_stop_with_their_cause(start: Start, tmp_path: Path) -> None:
    faults = [Fault("nan", "forward", 2, rank=1, until=1000)]
    job = start(tmp_path, 2, *settings(1000, "guard.bad_limit=3"), faults=faults)
    assert job.wait(RUN_S) != 0
    status = job.status()
    assert (status["cause"], status["code"], status["requeue"]) == ("bad numbers", 80, False)
    assert [report["applied"] for report in job.series()] == [True] * 2 + [False] * 4
    assert len(job.struck()) >= 4 and {line["step"] for line in written_out(job)} == {2, 3, 4, 5}


@pytest.mark.parametrize("spikes", ["skip", "roll back"])
def test_a_spike_is_skipped_or_gone_back_from(spikes: str, start: Start, tmp_path: Path) -> None:
    guard = (f"guard.spikes={spikes}", "guard.window=5", "checkpoint.every=4")
    job = finished(start(tmp_path, 2, *settings(12, *guard), faults=[Fault("spike", "forward", 9, rank=1, until=10)]))
    assert [report["step"] for report in job.series() if not report["applied"]] == [10]
    assert [report["step"] for report in job.series()] == list(range(1, 13))
    if spikes == "roll back":
        assert "going back to" in job.said()
