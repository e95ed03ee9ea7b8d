"""Gradients computed twice at some steps: a flipped bit ends the run and names its rank, and no number changes."""

from pathlib import Path

from consumer.metrics import lines
from tests.faults.conftest import Start
from tests.faults.planted import Fault

RUN_S = 90.0


def settings(steps: int, every: int) -> tuple[str, ...]:
    return ("mesh.tp=1", f"train.steps={steps}", "schedule.total_steps=1000", f"audit.replay_every={every}")


def test_replayed_steps_train_to_the_same_bits(start: Start, tmp_path: Path) -> None:
    jobs = [start(tmp_path / f"every-{every}", 2, *settings(6, every)) for every in (0, 2)]
    for job in jobs:
        assert job.wait(RUN_S) == 0, job.said()[-4000:]
    plain, replayed = jobs
    assert plain.series() == replayed.series() and plain.state(6) == replayed.state(6)
    told = lines(replayed.folder / "metrics" / "train.jsonl")
    again = [line["executed"] / line["flops"] for line in told if line["kind"] == "step"]
    assert again == [2, 1] * 3
    (save,) = (line for line in told if line["kind"] == "checkpoint")
    assert save["step"] == 6 and save["published"] and save["nbytes"] > 0 and 0 < save["stall_s"] <= save["seconds"]


def test_a_flipped_bit_of_a_gradient_ends_the_run_and_names_the_rank(start: Start, tmp_path: Path) -> None:
    job = start(tmp_path, 2, *settings(12, 2), faults=[Fault("flip", "gradients", 3, rank=1)])
    assert job.wait(RUN_S) != 0
    assert [line["at"] for line in job.struck()] == [4]
    said = job.status()
    assert (said["cause"], said["code"], said["requeue"], said["step"]) == ("silent corruption", 88, True, 4)
    assert said["message"].startswith("rank 1, step 5: the same gradients computed twice differ")
    assert not job.checkpoints()
