"""Training as a user starts it: torchrun, killed, resumed, stopped, misconfigured. Units are synthetic."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from consumer.export import export
from consumer.metrics import lines
from consumer.pieces import CheckpointReader
from launch.child import kill, torchrun
from launch.trained import config_of
from producer.coordinator import Limits
from producer.coordinator_server import CoordinatorServer
from producer.synthetic import SyntheticJob, SyntheticMaker
from producer.worker import Worker, WorkerSetup

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def producers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """A coordinator and a worker in this process; the overrides that let a trainer find them."""
    maker = SyntheticMaker(SyntheticJob(units=4, validation_units=3, samples=2, bucket="64x64", tokens=9, width=64))
    server = CoordinatorServer(maker.offer, Limits(horizon_bytes=1 << 24), host="127.0.0.1", port=0, access=TOKEN)
    worker = Worker(WorkerSetup("synthetic", lambda: server.address, TOKEN), maker)
    token = tmp_path_factory.mktemp("fleet") / "token"
    token.write_text(TOKEN)
    yield [f'pull={{address="{server.address}", token="{token}", wait_s=60, start_s=5}}']
    worker.stop()
    server.stop()


@pytest.fixture(scope="module")
def tiny(encoders: Path) -> list[str]:
    """Overrides for a model that takes milliseconds a step."""
    return [
        f"encoder.root={encoders}",
        "model.num_layers=2",
        "model.attention_head_dim=16",
        "model.axes_dims_rope=[4,6,6]",
        "recipe.units=4",
        "recipe.resolutions=[64]",
        "train.steps=8",
        "train.validate_every=4",
        "checkpoint.every=4",
        "schedule.warmup_steps=2",
        "schedule.total_steps=8",
    ]


def command(folder: Path, ranks: int, *overrides: str) -> list[str]:
    start = torchrun(ranks, "launch/pretrain.py", "launch/configs/smoke.toml", f"run.dir={folder}", *overrides)
    return [str(part) for part in start]


def run(line: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, **options)


def start(line: list[str]) -> subprocess.Popen[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=ROOT, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def series(folder: Path, kind: str = "step") -> list[Any]:
    return [line["loss"] for line in lines(folder / "metrics" / "train.jsonl") if line["kind"] == kind]


def wait_for_step(job: "subprocess.Popen[str]", folder: Path, step: int) -> None:
    wait_for(job, lambda: len(series(folder)) >= step)


def wait_for(job: "subprocess.Popen[str]", fine: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not fine():
        assert job.poll() is None and time.monotonic() < deadline, job.communicate(timeout=5)
        time.sleep(0.02)


def family(job: "subprocess.Popen[str]") -> list[Any]:
    import psutil

    root = psutil.Process(job.pid)
    return [root, *root.children(recursive=True)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, producers: list[str], tiny: list[str]) -> Path:
    """Eight steps at TP 2 that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(command(folder, 2, *tiny, *producers))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_killed_job_resumes_and_ends_with_the_same_bits(
    tmp_path: Path, producers: list[str], tiny: list[str], undisturbed: Path
) -> None:
    job = start(command(tmp_path, 2, *tiny, *producers))
    wait_for_step(job, tmp_path, 5)
    wait_for(job, lambda: (tmp_path / "checkpoints" / "step-00000004").exists())
    kill(family(job))
    job.communicate()
    resumed = run(command(tmp_path, 2, *tiny, *producers))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "continuing from" in resumed.stdout and "step-00000004" in resumed.stdout
    assert series(tmp_path) == series(undisturbed)
    assert series(tmp_path, "validation") == series(undisturbed, "validation")
    readers = [CheckpointReader(folder / "checkpoints" / "step-00000008") for folder in (tmp_path, undisturbed)]
    assert readers[0].names == readers[1].names
    for name in readers[0].names:
        for kind in readers[0].kinds(name):
            assert torch.equal(readers[0].whole(name, kind), readers[1].whole(name, kind)), (name, kind)


@pytest.mark.long
def test_data_parallel_ranks_train_on_the_same_step_as_tensor_parallel_ones(
    tmp_path: Path, producers: list[str], tiny: list[str], undisturbed: Path
) -> None:
    done = run(command(tmp_path, 2, *tiny, *producers, "mesh.tp=1"))
    assert done.returncode == 0, done.stdout + done.stderr
    # bf16 parameters and activations: sums over ranks are in another order.
    assert series(tmp_path) == pytest.approx(series(undisturbed), rel=2e-2)
    assert series(tmp_path, "validation")[0] == pytest.approx(series(undisturbed, "validation")[0], rel=1e-3)


def test_a_fresh_run_starts_from_released_weights_and_a_resumed_one_does_not(
    tmp_path: Path, producers: list[str], tiny: list[str], undisturbed: Path, encoders: Path
) -> None:
    reader = CheckpointReader(undisturbed / "checkpoints" / "step-00000008")
    state = ((name, reader.whole(name, "param")) for name in reader.names)
    export(tmp_path / "released", state, config_of(reader), encoders, torch.float32)
    line = command(tmp_path / "run", 2, *tiny, *producers, "train.steps=1", f"train.start_from={tmp_path}/released")
    first = run(line)
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"starting from step 0 with the weights in {tmp_path}/released" in first.stdout
    # Where the other run ended, to the bit, is where this one starts.
    assert series(tmp_path / "run", "validation")[0] == series(undisturbed, "validation")[-1]
    shutil.rmtree(tmp_path / "released")
    resumed = run([*line, "train.steps=2"])
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "continuing from" in resumed.stdout and len(series(tmp_path / "run")) == 2


def test_ctrl_c_saves_and_ends_within_ten_seconds_and_leaves_no_process(
    tmp_path: Path, producers: list[str], tiny: list[str]
) -> None:
    job = start(command(tmp_path, 2, *tiny, *producers, "train.steps=100000", "schedule.kind=constant"))
    wait_for_step(job, tmp_path, 2)
    members = family(job)
    asked = time.monotonic()
    for member in members:  # as a terminal does
        member.send_signal(signal.SIGINT)
    job.communicate(timeout=20)
    assert time.monotonic() - asked < 10
    assert job.returncode != 0
    assert not any(member.is_running() and member.status() != "zombie" for member in members)
    saved = sorted((tmp_path / "checkpoints").iterdir())
    assert saved and all(path.name.startswith("step-") for path in saved)
    reader = CheckpointReader(saved[-1])
    reader.verify(reader.files)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.stepz=5"], "train.stepz: no such setting; did you mean steps?"),
        pytest.param(["mesh.tp=3"], "mesh.tp: 3 does not divide num_heads 4; use 1, 2 or 4", marks=pytest.mark.long),
        pytest.param(
            ["mesh.tp=1", "encoder.root=/nowhere"],
            "encoder.root: /nowhere/vae/config.json: No such file",
            marks=pytest.mark.long,
        ),
        pytest.param(
            ["mesh.tp=1", "model.joint_attention_dim=32"], "model.joint_attention_dim: 32, but", marks=pytest.mark.long
        ),
        (["mesh.tp=1", "train.start_from=/nowhere"], "/nowhere/config.json: No such file or directory; give a folder"),
        pytest.param(
            ["mesh.tp=1", "mesh.provider=transformer_engine"],
            "mesh.provider: transformer_engine ",
            marks=pytest.mark.long,
        ),
        (["mesh.tp=1", 'pull={address="127.0.0.1:9", start_s=1, wait_s=9}'], "no producers at 127.0.0.1:9"),
    ],
)
def test_a_wrong_setting_ends_with_one_clear_message(
    tmp_path: Path, producers: list[str], tiny: list[str], overrides: list[str], said: str
) -> None:
    script = [sys.executable, "launch/pretrain.py", "launch/configs/smoke.toml", f"run.dir={tmp_path}"]
    done = run([*script, *tiny, *producers, *overrides])
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_under_torchrun_the_message_is_the_last_word(tmp_path: Path, producers: list[str], tiny: list[str]) -> None:
    done = run(command(tmp_path, 2, *tiny, *producers, "mesh.tp=3"))
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == "MeshError: mesh.tp: 3 does not divide num_heads 4; use 1, 2 or 4"
