"""Spread over ranks, the MMDiT is the one that diffusers runs on one device: outputs and every gradient."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.layout import Layout
from parallel.shard import held
from tests.distributed import tiny
from tests.distributed.ranks import Ranks


def run_on_rank(folder: str, tp: int, sp: bool) -> dict[str, list]:
    """Output and gradients of the unit in `folder`, each data-parallel rank with the samples of its own."""
    path, here = Path(folder), tiny.mesh(tp, sp)
    engine = tiny.build(path / "weights.safetensors", here, tiny.optim())
    unit = load_file(path / f"unit-{here.dp_rank % 2}.safetensors")
    layout = Layout.build(
        [[(0, *size)] for size in unit["sizes"].tolist()], unit["lengths"].tolist(), tiny.CONFIG.axes_dims_rope
    )
    engine.zero_grad()
    out = engine.module(unit["image"], unit["text"], unit["sigma"], layout)
    (out * unit["push"]).sum().backward()
    engine.finish(1)
    pieces, tensors = [], {"out": out.detach()}
    for item, shard in zip(held(engine._optimizer), engine.shards(), strict=False):
        key = f"{shard.name}/{shard.start}"
        tensors[key] = item.gradient.clone()
        pieces.append([shard.name, shard.place, list(shard.local), shard.start, shard.stop, key])
    save_file(tensors, path / f"out-{here.rank}.safetensors")
    here.close()
    return {"pieces": pieces}


def gradients(folder: Path, results: list[dict[str, list]]) -> dict[str, torch.Tensor]:
    """Whole gradients from every rank's pieces; where ranks hold copies they must be the same bits."""
    found: dict[str, torch.Tensor] = {}
    shapes = {name: tensor.shape for name, tensor in load_file(folder / "weights.safetensors").items()}
    filled: Counter[str] = Counter()
    for rank, result in enumerate(results):
        tensors = load_file(folder / f"out-{rank}.safetensors")
        for name, place, local, start, stop, key in result["pieces"]:
            whole = found.setdefault(name, torch.full(shapes[name], math.nan))
            part = whole if place is None else whole.narrow(place[0], place[1], place[2] - place[1])
            flat = part.reshape(-1).clone()
            old = flat[start:stop]
            assert old.isnan().all() or torch.equal(old, tensors[key]), f"{name}: ranks differ in a shared weight"
            filled[name] += int(old.isnan().sum())
            flat[start:stop] = tensors[key]
            part.copy_(flat.view(local))
    assert all(filled[name] == whole.numel() for name, whole in found.items())
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, two units, and what diffusers makes of them."""
    # Not above: the ranks import this file, and these take seconds.
    from tests.unit.model.parity import reference, run_theirs, samples

    folder = tmp_path_factory.mktemp("layers")
    theirs = reference(tiny.CONFIG, 1)
    save_file(theirs.state_dict(), folder / "weights.safetensors")
    wanted = {}
    for number in range(2):
        unit = samples(tiny.CONFIG, 5 + number, 3)
        out = run_theirs(theirs, unit)
        push = torch.randn(out.shape, generator=torch.Generator().manual_seed(number))
        (out * push).sum().backward()
        tensors = {
            "image": torch.cat([image for _, image, _, _ in unit]),
            "text": torch.cat([text for _, _, text, _ in unit]),
            "sigma": torch.tensor([sigma for _, _, _, sigma in unit]),
            "lengths": torch.tensor([len(text) for _, _, text, _ in unit]),
            "sizes": torch.tensor([[height, width] for ((_, height, width),), _, _, _ in unit]),
            "push": push,
        }
        save_file(tensors, folder / f"unit-{number}.safetensors")
        # Gradients accumulate: after the first unit its own, after the second the sum of both.
        wanted |= {f"{number}/{name}": p.grad.clone() for name, p in theirs.named_parameters() if p.grad is not None}
        wanted[f"{number}/out"] = out.detach()
    save_file(wanted, folder / "wanted.safetensors")
    return folder


@pytest.mark.parametrize(("world", "tp", "sp"), tiny.LAYOUTS)
def test_outputs_and_every_gradient_are_those_of_diffusers_on_one_device(
    ranks: Ranks, reference: Path, world: int, tp: int, sp: bool
) -> None:
    results = ranks.run(world, run_on_rank, folder=reference, tp=tp, sp=sp)
    wanted = load_file(reference / "wanted.safetensors")
    for rank in range(world):
        out = load_file(reference / f"out-{rank}.safetensors")["out"]
        want = wanted[f"{rank // tp % 2}/out"]
        assert (out - want).abs().max() <= 1e-5 * want.abs().max()
    found = gradients(reference, results)
    units = world // tp
    assert units in (1, 2)
    for name, gradient in found.items():
        want = wanted.get(f"{units - 1}/{name}", torch.zeros(()))
        assert (gradient - want).abs().max() <= 1e-5 * want.abs().max().clamp(min=1e-3), name
    assert found.keys() == {name[2:] for name, t in wanted.items() if name[0] == f"{units - 1}" and t.any()} - {"out"}
