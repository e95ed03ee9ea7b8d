"""What the tests of checkpoints share: a job that trains and saves, whole contents, and ways to damage a file."""

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from consumer.checkpoint import CheckpointReader
from consumer.config import CheckpointConfig, EmaConfig
from consumer.ema import Ema
from consumer.saver import Saver, SaveReport
from model.mmdit import MMDiT
from parallel.engine import Engine
from parallel.mesh import Mesh
from tests.distributed import tiny

LR = 3e-3
RESOLVED = {"model": {"num_layers": 3}, "note": "as resolved"}


def draw_weights(folder: Path) -> None:
    """The weights that every job of these tests starts from."""
    generator = torch.Generator().manual_seed(0)
    weights = {n: 0.1 * torch.randn(p.shape, generator=generator) for n, p in MMDiT(tiny.CONFIG).named_parameters()}
    save_file(weights, folder / "weights.safetensors")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights to start from."""
    folder = tmp_path_factory.mktemp("checkpoints")
    draw_weights(folder)
    return folder


@pytest.fixture
def here() -> Iterator[Mesh]:
    """A job of one rank, this process."""
    mesh = tiny.mesh(1, False)
    yield mesh
    mesh.close()


def start(folder: Path, here: Mesh, precision: str = "bf16", **over: Any) -> tuple[Engine, Ema]:
    """The engine and average of these tests."""
    # Without overlap no forward gathers the parameters: what is loaded must already be everywhere.
    engine = tiny.build(folder / "weights.safetensors", here, tiny.optim(precision, overlap=here.tp > 1, **over))
    return engine, Ema(EmaConfig(decay=0.9), engine)


def steps(engine: Engine, ema: Ema, first: int, count: int) -> list[tuple[float, float]]:
    """Train some steps: (loss, norm) of each."""
    series = []
    for step in range(first, first + count):
        loss, _ = tiny.backward(engine, step)
        norm, _ = engine.step(LR)
        ema.update(engine, step)
        series.append((loss, norm))
    return series


def config(root: Path, keep: int = 3, **over: Any) -> CheckpointConfig:
    """One that saves at every step."""
    return CheckpointConfig(**{"path": root, "every": 1, "keep": keep} | over)


def step_beside(saver: Saver, engine: Engine, ema: Ema, step: int) -> SaveReport | None:
    """A training step around a save in flight, as the loop takes it; how that save ended, if it did."""
    tiny.backward(engine, step)
    report = look(saver, engine.mesh)
    saver.taken()
    engine.step(LR)
    ema.update(engine, step)
    return report


def nudge(saver: Saver, engine: Engine, ema: Ema, step: int) -> SaveReport | None:
    """The same without a forward and a backward: weight decay alone moves the weights."""
    engine.zero_grad()
    engine.finish(1)
    report = look(saver, engine.mesh)
    saver.taken()
    engine.step(LR)
    ema.update(engine, step)
    return report


def look(saver: Saver, here: Mesh) -> SaveReport | None:
    """What the ranks tell each other of a save in a step."""
    return saver.heard(int(here.max(torch.tensor([saver.said()])).item()))


def ended(saver: Saver, here: Mesh, deadline_s: float = 20.0) -> SaveReport:
    """How the save in flight ends while no step is taken."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        report = look(saver, here)
        if report:
            return report
        time.sleep(0.005)
    raise AssertionError(f"no end of a save within {deadline_s:g} s")


def everything(path: Path) -> dict[str, torch.Tensor]:
    """All whole tensors of a checkpoint."""
    reader = CheckpointReader(path)
    return {f"{kind}/{name}": reader.whole(name, kind) for name in reader.names for kind in reader.kinds(name)}


def same_bits(one: Path, other: Path) -> None:
    """Hold two checkpoints equal, whatever layout wrote them."""
    left, right = everything(one), everything(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor.view(torch.int32), right[name].view(torch.int32)), name


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def flipped(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncated(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def missing(path: Path, rng: random.Random) -> None:
    path.unlink()


def from_another_step(path: Path, rng: random.Random) -> None:
    other = rng.choice([folder for folder in path.parent.parent.glob("step-*") if folder != path.parent])
    shutil.copyfile(other / path.name, path)
