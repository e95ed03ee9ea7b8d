"""What a checkpoint costs: the stall of a save while training beside the same save waited for, and verifying a load.

`make bench-train` prints it and keeps it in runs/bench/train.json.
"""

import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from consumer.checkpoint import CheckpointReader, latest, load, newest
from consumer.config import CheckpointConfig, EmaConfig
from consumer.ema import Ema
from consumer.pieces import mapped
from consumer.saver import Saver
from model.mmdit import MMDiT
from parallel.engine import Engine
from tests.bench.report import record
from tests.distributed import tiny

# 67 million elements: a checkpoint of 1.1 GB.
CONFIG = tiny.CONFIG.model_copy(update={"num_layers": 3, "num_attention_heads": 50})
ROUNDS, LOADS = 5, 9
STALL = 20.0  # times shorter than the save waited for
VERIFIED = 1 / 1.1  # of the speed of a load that trusts; from the page cache two cores miss it
LEAST_VERIFIED = 1 / 1.5


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def step(engine: Engine, ema: Ema, number: int, saver: Saver) -> float:
    """Train a step as the loop does; the seconds of it that the saver took."""
    engine.zero_grad()
    for unit in range(4):
        tiny.unit_loss(engine.module, number, unit)[0].backward()
    engine.finish(8)
    held = seconds(lambda: saver.heard(saver.said())) + seconds(saver.taken)
    engine.step(1e-3)
    ema.update(engine, number)
    return held


def rounds(saver: Saver, engine: Engine, ema: Ema) -> tuple[list[float], list[float], list[float], list[float]]:
    """Seconds of each: a save waited for, the stall of one that is not, the step beside that one, a step alone."""
    waited, held, beside, alone = [], [], [], []
    for number in range(ROUNDS):
        waited.append(seconds(lambda: saver.save(2 * number + 1, {}, wait=True)))  # noqa: B023
        alone.append(seconds(lambda: step(engine, ema, number, saver)))  # noqa: B023
        start = time.perf_counter()
        saver.save(2 * number + 2, {})
        stall = time.perf_counter() - start
        stall += step(engine, ema, number, saver)
        beside.append(time.perf_counter() - start)
        while not (report := saver.heard(saver.said())):
            time.sleep(0.02)
        assert report.published and abs(report.stall_s - stall) < 0.2
        held.append(stall)
    return waited, held, beside, alone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if shutil.disk_usage(tmp_path).free < 6e9:
        pytest.skip(f"less than 6 GB free in {tmp_path}")
    return tmp_path


def test_a_save_stalls_training_for_a_twentieth_of_its_time(folder: Path) -> None:
    here = tiny.mesh(1, False)
    try:
        engine = Engine(MMDiT(CONFIG), tiny.optim("bf16", overlap=False), here)
        ema = Ema(EmaConfig(), engine)
        saver = Saver(CheckpointConfig(path=folder, every=1, keep=2), engine, ema, here, {})
        waited, held, beside, alone = (statistics.median(series) for series in rounds(saver, engine, ema))
        saver.close()
        path = latest(folder, here)
        assert path
        size = sum(file.stat().st_size for file in path.iterdir())
        loading(engine, ema, path)
    finally:
        here.close()
    print(
        f"\n{size / 1e9:.2f} GB: waited for {waited:.3f} s, stall {1000 * held:.1f} ms, {waited / held:.0f} times less"
    )
    print(f"the step beside it {beside:.3f} s, alone {alone:.3f} s")
    case = {"ours": held, "peer": waited, "ratio": waited / held, "target": STALL, "unit": "s"}
    record("train.json", {"checkpoint stall": case})
    assert waited / held >= STALL


class Trusting(CheckpointReader):
    """Reads without verifying."""

    def _verified(self, name: str) -> Tensor:
        return mapped(self.path / name)


def loading(engine: Engine, ema: Ema, path: Path) -> None:
    """What verifying adds to a load: from the disk and from the page cache."""

    def checked() -> None:
        found = newest(path.parent, engine.mesh)
        assert found
        load(engine, ema, found, engine.mesh)

    def trusted() -> None:
        load(engine, ema, Trusting(path), engine.mesh)

    for name, prepare in (("disk", lambda: forget(path)), ("page cache", lambda: None)):
        series: dict[Callable[[], None], list[tuple[float, float]]] = {checked: [], trusted: []}
        for number in range(LOADS):
            for act in (checked, trusted) if number % 2 else (trusted, checked):
                prepare()
                cpu = time.process_time()
                series[act].append((seconds(act), time.process_time() - cpu))
        (wall, cpu), (plain, plain_cpu) = (
            [statistics.median(column) for column in zip(*series[act], strict=True)] for act in (checked, trusted)
        )
        print(f"load from {name}: {wall:.3f} s, unverified {plain:.3f} s, {100 * (wall / plain - 1):+.0f} %")
        print(f"  CPU {cpu:.3f} s, unverified {plain_cpu:.3f} s, {100 * (cpu / plain_cpu - 1):+.0f} %")
        case = {"ours": wall, "peer": plain, "ratio": plain / wall, "target": VERIFIED, "unit": "s"}
        record("train.json", {f"verified load from {name}": case})
        assert plain_cpu / cpu >= LEAST_VERIFIED


def forget(folder: Path) -> None:
    """Have the files of `folder` read from the disk again."""
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
