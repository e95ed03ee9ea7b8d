"""The main job, as `make smoke` runs it, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from producer.index import Index

ROOT = Path(__file__).parents[2]


def smoke(folder: Path) -> list[str]:
    return [sys.executable, "launch/smoke.py", "launch/configs/smoke.toml", f"run.dir={folder}"]


# Two fifths of the steps and half of their pictures, to spare time: the loss falls enough, and the kill still comes in
# the middle.
SHORT = [
    "recipe.units=2",
    "train.steps=24",
    "schedule.total_steps=24",
    "checkpoint.every=12",
    "pictures.every=12",
    "train.validate_every=12",
]


def descendants(folder: Path) -> list[psutil.Process]:
    """Processes that have to do with a run in `folder`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in part for part in process.info["cmdline"] or ()):
            found.append(process)
    return found


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a run, and how it ended."""
    folder = tmp_path_factory.mktemp("smoke")
    return folder, subprocess.run([*smoke(folder), *SHORT], cwd=ROOT, capture_output=True, text=True, timeout=1250)


@pytest.mark.timeout(1300)
def test_photographs_go_in_and_a_trained_sampled_exported_model_comes_out(
    ended: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = ended
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((folder / "report.json").read_text())
    curate, train = report["curate"], report["train"]
    assert curate["in"] == curate["kept"] + sum(curate["dropped"].values())
    assert curate["kept"] >= 150 and len(curate["buckets"]) >= 5
    assert {"broken", "file_size", "resolution", "exact_duplicate", "near_duplicate"} <= curate["dropped"].keys()
    rows = Index.open(folder / "index").table.select(["key", "dropped_by"]).to_pylist()
    dropped = {row["key"]: row["dropped_by"] for row in rows}
    planted = json.loads((folder / "raw" / "planted.json").read_text())
    assert {item["stage"] for item in planted} == {1, 2, 3, 4}
    assert {item["key"]: item["operator"] for item in planted} == {
        item["key"]: dropped[item["key"]] for item in planted
    }
    ways = {
        key.partition(":")[2].partition("-")[0]
        for key, by in dropped.items()
        if key.startswith("synthetic:") and not by
    }
    assert ways == {"lettering", "pure", "compositional", "template"} and report["synthesize"]["trained"] > 0
    assert report["produce"]["images"] > 0 and train["steps"] == 24
    assert train["resumed_bit_equal"]
    assert train["validation_loss_last"] <= 0.85 * train["validation_loss_first"]
    for name in ("grid.png", "diffusers.png"):
        with Image.open(folder / name) as picture:
            assert picture.width >= 256 and picture.height >= 256
    assert not descendants(folder)


@pytest.mark.timeout(1300)
def test_ctrl_c_ends_everything_within_ten_seconds(
    tmp_path: Path, ended: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    log, folder = tmp_path / "out", ended[0]  # where pictures are already, to spare time
    with log.open("w") as out:
        job = subprocess.Popen(smoke(folder), cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
    deadline = time.monotonic() + 600
    while "train, kill, resume" not in log.read_text():  # producers are up, and training starts
        assert job.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    time.sleep(2)
    asked = time.monotonic()
    os.killpg(job.pid, signal.SIGINT)
    assert job.wait(20) == 130
    assert time.monotonic() - asked < 10
    assert not descendants(folder)
    assert not list(folder.rglob("*.part")) and "Traceback" not in log.read_text()
