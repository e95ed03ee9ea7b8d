"""What reading released weights costs in memory: a model of 1.7 B parameters in bf16, on two ranks. Takes 4 GB of disk.

`make bench` prints it and keeps it in runs/bench/model.json.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from consumer.export import export
from consumer.released import load_released
from model.config import MMDiTConfig
from model.init import shapes
from model.mmdit import MMDiT
from parallel.provider import MegatronProvider
from tests.bench.report import peak_growth, record
from tests.distributed import tiny
from tests.distributed.ranks import Ranks

# The released model's width with 5 of its 60 blocks.
CONFIG = MMDiTConfig(num_layers=5)
ROOM = 1.15  # of a rank's share of the weights
FREE = 6_000_000_000


def weights() -> Iterator[tuple[str, Tensor]]:
    """Every weight, one at a time."""
    drawn = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0), dtype=torch.float32).bfloat16()
    for name, shape in shapes(CONFIG).items():
        size = shape.numel()
        yield name, drawn.repeat(-(-size // len(drawn)))[:size].view(shape)


def load_on_rank(folder: str) -> dict[str, float]:
    """Growth at the peak and this rank's share, in bytes."""
    here = tiny.mesh(2, False)
    with torch.device("meta"):
        model = MMDiT(CONFIG, MegatronProvider(here, torch.bfloat16))
    start = time.perf_counter()
    peak = peak_growth(lambda: load_released(Path(folder), model, here, torch.bfloat16))
    seconds = time.perf_counter() - start
    share = sum(parameter.nbytes for parameter in model.parameters())
    here.close()
    return {"peak": peak, "share": share, "seconds": seconds}


def test_a_rank_reads_its_share_and_little_more(encoders: Path, tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    if free < FREE:
        pytest.skip(f"{free / 1e9:.1f} GB free in {tmp_path}, needs {FREE / 1e9:.0f}")
    count = sum(shape.numel() for shape in shapes(CONFIG).values())
    assert count > 1.5e9
    ranks = Ranks()
    try:
        export(tmp_path / "out", weights(), CONFIG, encoders, torch.bfloat16, shard_bytes=500_000_000)
        results = ranks.run(2, load_on_rank, folder=tmp_path / "out", deadline_s=600)
    finally:
        ranks.close()
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    print(f"\n{count / 1e9:.2f} B parameters in bf16, {2 * count / 1e9:.2f} GB, onto 2 ranks")
    for rank, said in enumerate(results):
        peak, share = said["peak"], said["share"]
        print(f"rank {rank}: +{peak / 1e9:.3f} GB at most, {peak / share:.3f} of its share (at most {ROOM})", end=", ")
        print(f"{said['seconds']:.1f} s")
        limit = ROOM * share
        case = {"ours": peak, "peer": limit, "ratio": limit / peak, "target": 1.0, "unit": "bytes"}
        record("model.json", {f"load peak rank {rank}": case})
        assert share < peak <= limit
