"""Every way a run can end, under torchrun, which says 1 for all: status.json says why and what next."""

import time
from pathlib import Path

import pytest

from tests.faults.conftest import Start
from tests.faults.job import Job, Producers
from tests.faults.planted import Fault

RUN_S = 60.0
ENDLESS = ("train.steps=100000", "schedule.total_steps=100000")

# name: cause, code, requeue, settings, faults.
ENDINGS: dict[str, tuple[str, int, bool, tuple[str, ...], tuple[Fault, ...]]] = {
    "done": ("done", 0, False, ("train.steps=3",), ()),
    "interrupted": ("interrupted", 130, False, ENDLESS, (Fault("SIGINT", "forward", 3, rank=1),)),
    "preempted": ("preempted", 143, True, ENDLESS, (Fault("SIGTERM", "forward", 3, rank=1),)),
    "asked to save": ("saved on request", 138, True, ENDLESS, (Fault("SIGUSR1", "forward", 3, rank=1),)),
    "bad numbers": (
        "bad numbers",
        80,
        False,
        (*ENDLESS, "guard.bad_limit=0"),
        (Fault("nan", "forward", 3, rank=1),),
    ),
    "spikes": (
        "no progress",
        81,
        False,
        (*ENDLESS, "guard.spikes=skip", "guard.window=3", "guard.bad_limit=0"),
        (Fault("spike", "forward", 6, rank=1),),
    ),
    "out of memory": ("out of memory", 82, False, ENDLESS, (Fault("no memory", "backward", 3, rank=1),)),
    "disk full": (
        "disk full",
        83,
        False,
        (*ENDLESS, "checkpoint.every=2", "checkpoint.give_up_s=1", "checkpoint.retry_s=0.2"),
        (Fault("no space", "write", 1, rank=1, until=100_000),),
    ),
    "peer lost": ("peer lost", 86, True, ENDLESS, (Fault("SIGKILL", "forward", 3, rank=1),)),
    "bug": ("bug", 1, False, ENDLESS, (Fault("bug", "backward", 3, rank=1),)),
}


def check_status(job: Job, cause: str, code: int, requeue: bool) -> None:
    said = job.status()
    assert (said["cause"], said["code"], said["requeue"]) == (cause, code, requeue), f"{said}\n{job.said()[-4000:]}"
    assert said["host"] and said["rank"] in (0, 1) and abs(said["step"] - job.done()) <= 1


# The others are in make soak, or their like in the other files here.
SHORT = ("bad numbers", "disk full", "peer lost")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SHORT else pytest.mark.long) for n in ENDINGS])
def test_an_ending_says_its_cause_and_what_to_do(name: str, start: Start, tmp_path: Path) -> None:
    cause, code, requeue, given, faults = ENDINGS[name]
    job = start(tmp_path, 2, "mesh.tp=1", *given, faults=faults)
    assert (job.wait(RUN_S) == 0) == (code == 0), job.said()[-4000:]
    check_status(job, cause, code, requeue)
    if faults and faults[0].act in ("no memory", "bug", "no space"):
        assert job.status()["rank"] == 1 or name == "disk full"


def test_missing_producers_save_and_end_as_starvation(start: Start, facts: tuple[str, ...], tmp_path: Path) -> None:
    own = Producers(tmp_path)
    try:
        job = start(tmp_path / "run", 2, *own.overrides(wait_s=2), "mesh.tp=1", *ENDLESS)
        job.until(lambda: job.done() >= 3 or job.poll() is not None or None, RUN_S)
    finally:
        own.stop()
    assert job.wait(RUN_S) != 0
    check_status(job, "data starvation", 84, True)
    assert job.checkpoints()[-1] == job.done()


def test_damaged_checkpoints_alone_are_no_reason_to_start_anew(start: Start, tmp_path: Path) -> None:
    first = start(tmp_path, 2, "mesh.tp=1", "train.steps=2")
    assert first.wait(RUN_S) == 0, first.said()
    for path in (tmp_path / "checkpoints").rglob("*.safetensors"):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    job = start(tmp_path, 2, "mesh.tp=1", "train.steps=4")
    assert job.wait(RUN_S) != 0
    assert (job.status()["cause"], job.status()["code"], job.status()["requeue"]) == ("damaged state", 87, False)


def test_a_wrong_setting_is_one(start: Start, tmp_path: Path) -> None:
    job = start(tmp_path, 2, "mesh.tp=1", "train.steps=2", "encoder.root=/nowhere")
    assert job.wait(RUN_S) != 0
    assert (job.status()["cause"], job.status()["code"], job.status()["requeue"]) == ("wrong setting", 2, False)


def test_a_stopped_rank_is_a_hang_that_leaves_every_ranks_stacks(start: Start, tmp_path: Path) -> None:
    given = ("watchdog.hang_s=4", "watchdog.grace_s=1")
    own = Producers(tmp_path)
    try:
        fault = Fault("SIGSTOP", "forward", 3, rank=1)
        job = start(tmp_path / "run", 2, *own.overrides(wait_s=3), "mesh.tp=1", *ENDLESS, *given, faults=[fault])
        job.until(lambda: job.struck() or None, RUN_S)
        began = time.monotonic()
        assert job.wait(RUN_S) != 0
    finally:
        own.stop()
    assert time.monotonic() - began < 4 + 2 + 30
    assert (job.status()["cause"], job.status()["code"], job.status()["requeue"]) == ("hang", 85, True)
    said = "".join(path.read_text() for path in job.folder.glob("stacks-*.txt"))
    assert "rank 0" in said and "rank 1" in said, said[:2000]


def test_fewer_held_out_units_than_ranks_stop_nobody(start: Start, tmp_path: Path) -> None:
    own = Producers(tmp_path, validation_units=1)
    try:
        job = start(tmp_path / "run", 4, *own.overrides(), "mesh.tp=1", "mesh.timeout_s=45", "train.steps=3")
        assert job.wait(RUN_S) == 0, job.said()
    finally:
        own.stop()
    assert [report["samples"] for report in job.series("validation")] == [2, 2]
