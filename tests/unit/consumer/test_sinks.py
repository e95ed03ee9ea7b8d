"""Whoever listens gets every report, and one that fails ends nothing."""

import importlib.util
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from consumer.config import WandbConfig
from consumer.metrics import (
    CheckpointReport,
    JsonLines,
    Part,
    PicturesReport,
    Report,
    StepReport,
    ValidationReport,
    lines,
    tell,
)
from consumer.sink.lenient import Lenient
from consumer.sink.tensorboard import TensorBoard
from consumer.sink.wandb import Wandb, WandbError

HERE = importlib.util.find_spec("wandb") is not None


def report(step: int, loss: float = 0.5, samples: int = 4) -> StepReport:
    levels, buckets = {"0.3-0.4": Part(loss, samples)}, {"256x320": Part(loss, samples)}
    return StepReport(
        step, loss, 1e-4, 1.5, True, samples, 1000, 2e15, 2.0, 0.5, 0.4, 7 << 30, levels, buckets, {"forward": 0.75}
    )


def sheet(folder: Path) -> PicturesReport:
    Image.fromarray(np.full((20, 30, 3), 77, np.uint8)).save(folder / "step-00000010.png")
    return PicturesReport(10, str(folder / "step-00000010.png"), ("a cat",), 1.0)


class Listener:
    """Takes reports until it fails, at the `failing`-th."""

    def __init__(self, failing: int = 0) -> None:
        self.failing, self.heard, self.closed = failing, 0, False

    def __call__(self, report: Report) -> None:
        self.heard += 1
        if self.heard == self.failing:
            raise RuntimeError("the network is gone")

    def close(self) -> None:
        self.closed = True
        if self.failing < 0:
            raise RuntimeError("no farewell")


def test_a_failing_sink_is_named_once_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Listener(failing=2), Listener()
    sinks = [Lenient("tracker", lambda: bad), Lenient("file", lambda: good)]
    with caplog.at_level(logging.WARNING):
        for step in range(1, 6):
            tell(sinks, report(step))
        for sink in sinks:
            sink.close()
    assert (bad.heard, good.heard, good.closed) == (2, 5, True)
    assert [record.getMessage() for record in caplog.records] == [
        "tracker: RuntimeError: the network is gone; training goes on, and nothing more is reported there"
    ]


def test_a_sink_that_cannot_be_opened_or_closed_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def taken() -> Listener:
        raise OSError("address in use")

    for sink in (Lenient("endpoint", taken), Lenient("tracker", lambda: Listener(failing=-1))):
        tell([sink], report(1))
        sink.close()
        sink.close()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["endpoint", "tracker"]


def test_the_file_holds_every_kind_with_all_its_numbers(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "train.jsonl", 0)
    tell([sink], report(10))
    tell([sink], ValidationReport(10, 0.25, 9, 1.0, {"0.0-0.1": Part(0.125, 9)}))
    tell([sink], sheet(tmp_path))
    tell([sink], CheckpointReport(10, True, "", 2.0, 0.125, 3000))
    sink.close()
    step, validation, pictures, checkpoint = lines(tmp_path / "train.jsonl")
    kinds = [line["kind"] for line in (step, validation, pictures, checkpoint)]
    assert kinds == ["step", "validation", "pictures", "checkpoint"]
    assert (checkpoint["seconds"], checkpoint["stall_s"], checkpoint["nbytes"]) == (2.0, 0.125, 3000)
    assert step["loss_by_level"] == {"0.3-0.4": [0.5, 4]} and step["loss_by_bucket"] == {"256x320": [0.5, 4]}
    assert step["split"] == {"forward": 0.75} and step["mfu"] == 0.4 and step["peak_memory"] == 7 << 30
    assert validation["loss_by_level"] == {"0.0-0.1": [0.125, 9]}
    assert pictures["path"].endswith("step-00000010.png") and pictures["captions"] == ["a cat"]


def test_tensorboard_shows_curves_parts_and_pictures(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path / "tensorboard", 0)
    for step in range(1, 12):
        tell([sink], report(step, loss=float(step), samples=step))
    tell([sink], ValidationReport(10, 0.25, 9, 1.0, {"0.0-0.1": Part(0.125, 9)}))
    tell([sink], sheet(tmp_path))
    tell([sink], CheckpointReport(10, True, "", 2.0, 0.125, 3_000_000_000))
    sink.close()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("train/loss")] == [(k, float(k)) for k in range(1, 12)]
    assert read.Scalars("train/mfu")[0].value == pytest.approx(0.4)
    assert read.Scalars("seconds/forward")[0].value == 0.75
    # Ten steps to a point, every sample counting alike: sum of squares over sum.
    assert [(event.step, event.value) for event in read.Scalars("loss_by_level/0.3-0.4")] == [(10, 7.0)]
    assert [(event.step, event.value) for event in read.Scalars("loss_by_bucket/256x320")] == [(10, 7.0)]
    assert read.Scalars("validation/loss")[0].value == 0.25
    assert read.Scalars("validation_loss_by_level/0.0-0.1")[0].value == 0.125
    assert read.Scalars("checkpoint/stall_s")[0].value == 0.125 and read.Scalars("checkpoint/gb")[0].value == 3
    (image,) = read.Images("pictures/average")
    assert (image.step, image.width, image.height) == (10, 30, 20)


@pytest.mark.skipif(HERE, reason="wandb is installed")
def test_wandb_that_is_not_installed_is_refused_with_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(WandbError, match=r"wandb.project: 'ink' is set .* pip install 'inkstone\[wandb\]'"):
        Wandb(WandbConfig(project="ink"), "run", tmp_path, {})


@pytest.mark.skipif(not HERE, reason="wandb is not installed")
def test_wandb_keeps_an_offline_run(tmp_path: Path) -> None:
    sink = Wandb(WandbConfig(project="ink", mode="offline"), "run", tmp_path, json.loads("{}"))
    tell([sink], report(1))
    tell([sink], sheet(tmp_path))
    sink.close()
    assert list(tmp_path.rglob("*.wandb"))
