"""Spread over ranks, the MMDiT is the one that diffusers runs on one device: outputs and every gradient."""

import json
import math
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.layout import Layout
from parallel.shard import held
from tests.distributed import tiny
from tests.distributed.ranks import Ranks

UNITS = 4  # as many as data-parallel ranks at most


def run_on_rank(folder: str, model: str, tp: int, sp: bool) -> dict[str, list]:
    """Output and gradients of the unit in `folder`, each data-parallel rank with the samples of its own."""
    path, here, sizes = Path(folder), tiny.mesh(tp, sp), tiny.MODELS[model]
    engine = tiny.build(path / "weights.safetensors", here, tiny.optim(), sizes)
    unit = load_file(path / f"unit-{here.dp_rank}.safetensors")
    said = json.loads((path / f"unit-{here.dp_rank}.json").read_text())
    layout = Layout.build(said["pictures"], said["lengths"], sizes.axes_dims_rope, layered=sizes.use_layer3d_rope)
    engine.zero_grad()
    out = engine.module(unit["image"], unit["text"], unit["sigma"], layout, unit.get("kinds"))
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
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """For a model's name a folder of its weights, units, and what diffusers makes of them."""

    @cache
    def made(model: str) -> Path:
        folder = tmp_path_factory.mktemp(model)
        write_reference(folder, model)
        return folder

    return made


def write_reference(folder: Path, model: str) -> None:
    # Not above: the ranks import this file, and these take seconds.
    from tests.unit.model.parity import kinds, reference, run_theirs, samples

    sizes = tiny.MODELS[model]
    theirs = reference(sizes, 1)
    save_file(theirs.state_dict(), folder / "weights.safetensors")
    wanted = {}
    for number in range(UNITS):
        unit = samples(sizes, 5 + number, 3, pictures=(1,) if model == "text" else (1, 2, 3))
        out = run_theirs(theirs, unit)
        push = torch.randn(out.shape, generator=torch.Generator().manual_seed(number))
        (out * push).sum().backward()
        tensors = {
            "image": torch.cat([image for _, image, _, _ in unit]),
            "text": torch.cat([text for _, _, text, _ in unit]),
            "sigma": torch.tensor([sigma for _, _, _, sigma in unit]),
            "push": push,
        }
        classes = kinds(sizes, unit)
        save_file(tensors if classes is None else tensors | {"kinds": classes}, folder / f"unit-{number}.safetensors")
        said = {"pictures": [pictures for pictures, _, _, _ in unit], "lengths": [len(text) for _, _, text, _ in unit]}
        (folder / f"unit-{number}.json").write_text(json.dumps(said))
        # Gradients accumulate: after the first unit its own, after the second the sum of both, and on.
        wanted |= {f"{number}/{name}": p.grad.clone() for name, p in theirs.named_parameters() if p.grad is not None}
        wanted[f"{number}/out"] = out.detach()
    save_file(wanted, folder / "wanted.safetensors")


OTHERS = [
    ("text", 4, 1, False),
    ("edit", 3, 3, False),
    ("edit", 3, 3, True),
    ("edit", 4, 2, True),
    ("layered", 3, 3, True),
    ("layered", 4, 2, False),
    ("layered", 2, 1, False),
]


@pytest.mark.parametrize(("model", "world", "tp", "sp"), [("text", *layout) for layout in tiny.LAYOUTS] + OTHERS)
def test_outputs_and_every_gradient_are_those_of_diffusers_on_one_device(
    ranks: Ranks, references: Callable[[str], Path], model: str, world: int, tp: int, sp: bool
) -> None:
    reference = references(model)
    results = ranks.run(world, run_on_rank, folder=reference, model=model, tp=tp, sp=sp)
    wanted = load_file(reference / "wanted.safetensors")
    for rank in range(world):
        out = load_file(reference / f"out-{rank}.safetensors")["out"]
        want = wanted[f"{rank // tp}/out"]
        assert (out - want).abs().max() <= 1e-5 * want.abs().max()
    found = gradients(reference, results)
    units = world // tp
    assert units <= UNITS
    for name, gradient in found.items():
        want = wanted.get(f"{units - 1}/{name}", torch.zeros(()))
        assert (gradient - want).abs().max() <= 1e-5 * want.abs().max().clamp(min=1e-3), name
    assert found.keys() == {name[2:] for name, t in wanted.items() if name[0] == f"{units - 1}" and t.any()} - {"out"}
