"""What one layout saved, any other loads bit for bit, and its next gradients are those of a single rank."""

from pathlib import Path
from typing import Any

import torch

from consumer.checkpoint import CheckpointReader, latest, load, save
from tests.distributed import tiny
from tests.distributed.ranks import Ranks
from tests.distributed.saving import RESOLVED, config, draw_weights, same_bits, start, steps

# (ranks, tensor parallel, sequence parallel)
LAYOUTS = {
    "one rank": (1, 1, False),
    "DP 2": (2, 1, False),
    "TP 2": (2, 2, False),
    "TP 2 + SP": (2, 2, True),
    "TP 2 x DP 2": (4, 2, False),
    "DP 4": (4, 1, False),
    "TP 4": (4, 4, False),
}
DONE = 2
ERROR = 1e-5  # of a gradient's norm; of the whole gradient's where a tensor's own is rounding alone


def save_on_rank(folder: str, into: str, tp: int, sp: bool) -> None:
    """Train some steps in fp32 and save."""
    here = tiny.mesh(tp, sp)
    engine, ema = start(Path(folder), here, "fp32")
    steps(engine, ema, 0, DONE)
    save(config(Path(folder) / into), engine, ema, DONE, RESOLVED, {}, here)
    here.close()


def load_on_rank(folder: str, came: str, into: str, tp: int, sp: bool) -> None:
    """Load, save what was loaded, take a step and save that: its first moment is then the gradient itself."""
    here, root = tiny.mesh(tp, sp), config(Path(folder) / into)
    engine, ema = start(Path(folder), here, "fp32", betas=(0.0, 0.95), clip=0.0)
    found = latest(Path(folder) / came, here)
    assert found and load(engine, ema, found, here).step == DONE
    save(root, engine, ema, DONE, RESOLVED, {}, here)
    steps(engine, ema, DONE, 1)
    save(root, engine, ema, DONE + 1, RESOLVED, {}, here)
    here.close()


def gradients(root: Path) -> dict[str, torch.Tensor]:
    """The gradients of the step after the load."""
    reader = CheckpointReader(root / f"step-{DONE + 1:08d}")
    return {name: reader.whole(name, "exp_avg") for name in reader.names if "exp_avg" in reader.kinds(name)}


def off(ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """The worst relative error of a tensor."""
    assert ours.keys() == reference.keys()
    whole = torch.stack([tensor.norm() for tensor in reference.values()]).norm()
    errors = [(ours[name] - one).norm() / max(one.norm(), 1e-3 * whole) for name, one in reference.items()]
    return float(torch.stack(errors).max())


def reshard(ranks: Ranks, folder: Path, came: str, to: list[str]) -> float:
    """Save under one layout, load under others: the worst error of a gradient against one rank's."""
    draw_weights(folder)
    world, tp, sp = LAYOUTS[came]
    ranks.run(world, save_on_rank, folder=folder, into=came, tp=tp, sp=sp)
    worst = 0.0
    for name in ["one rank", *to]:
        world, tp, sp = LAYOUTS[name]
        into = f"{came} to {name}"
        ranks.run(world, load_on_rank, folder=folder, came=came, into=into, tp=tp, sp=sp)
        same_bits(folder / came / f"step-{DONE:08d}", folder / into / f"step-{DONE:08d}")
        worst = max(worst, off(gradients(folder / into), gradients(folder / f"{came} to one rank")))
    return worst


def test_another_layout_loads_every_bit_and_goes_on_with_the_same_gradients(ranks: Ranks, tmp_path: Path) -> None:
    error = reshard(ranks, tmp_path, "TP 2 x DP 2", ["TP 4", "DP 4", "TP 2 + SP", "DP 2"])
    print(f"worst relative error of a gradient: {error:.1e}")
    assert error <= ERROR


def test_a_wrong_gradient_is_seen() -> None:
    one: dict[str, Any] = {"a": torch.ones(10), "b": torch.full((10,), 1e-9)}
    assert off({"a": one["a"], "b": -one["b"]}, one) < ERROR < off({"a": one["a"] * (1 + 1e-4), "b": one["b"]}, one)
