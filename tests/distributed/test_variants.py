"""Every variant of the MMDiT, spread over ranks, is the one that diffusers runs on one device."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.layout import Layout
from model.mmdit import MMDiT
from parallel.engine import Engine
from parallel.place import place
from parallel.provider import MegatronProvider
from parallel.shard import held
from tests.distributed import tiny
from tests.distributed.ranks import Ranks
from tests.distributed.test_layers import gradients

VARIANTS = {
    "zero_cond_t": {"zero_cond_t": True},
    "layered": {"use_layer3d_rope": True, "use_additional_t_cond": True},
}


def run_on_rank(folder: str, tp: int, sp: bool, variant: str) -> dict[str, list]:
    """Output and gradients of the unit in `folder`."""
    path, here = Path(folder), tiny.mesh(tp, sp)
    config = tiny.CONFIG.model_copy(update=VARIANTS[variant])
    model = MMDiT(config, MegatronProvider(here, torch.float32))
    weights = load_file(path / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            part = place(parameter, here)
            parameter.copy_(weights[name] if part is None else part.of(weights[name]))
    engine = Engine(model, tiny.optim(), here)
    unit = load_file(path / "unit.safetensors")
    counts = unit["pictures"].tolist()
    grids = [tuple(grid) for grid in unit["grids"].tolist()]
    pictures = [[grids.pop(0) for _ in range(count)] for count in counts]
    layout = Layout.build(pictures, unit["lengths"].tolist(), config.axes_dims_rope, layered=config.use_layer3d_rope)
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


@pytest.mark.parametrize(("tp", "sp"), [(2, False), (2, True)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_mixed_unit_of_a_variant_is_that_of_diffusers_on_one_device(
    ranks: Ranks, tmp_path: Path, variant: str, tp: int, sp: bool
) -> None:
    # Not above: the ranks import this file, and these take seconds.
    from tests.unit.model.parity import kinds, reference, run_theirs, samples

    config = tiny.CONFIG.model_copy(update=VARIANTS[variant])
    theirs, unit = reference(config, 1), samples(config, 5, 4, (1, 2, 3))
    want = run_theirs(theirs, unit)
    push = torch.randn(want.shape, generator=torch.Generator().manual_seed(0))
    (want * push).sum().backward()
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    tensors = {
        "image": torch.cat([image for _, image, _, _ in unit]),
        "text": torch.cat([text for _, _, text, _ in unit]),
        "sigma": torch.tensor([sigma for _, _, _, sigma in unit]),
        "lengths": torch.tensor([len(text) for _, _, text, _ in unit]),
        "pictures": torch.tensor([len(grids) for grids, _, _, _ in unit]),
        "grids": torch.tensor([grid for grids, _, _, _ in unit for grid in grids]),
        "push": push,
        "kinds": kinds(config, unit),
    }
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / "unit.safetensors")
    results = ranks.run(tp, run_on_rank, folder=tmp_path, tp=tp, sp=sp, variant=variant)
    for rank in range(tp):
        out = load_file(tmp_path / f"out-{rank}.safetensors")["out"]
        assert (out - want).abs().max() <= 1e-5 * want.abs().max()
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None and p.grad.any()}
    found = gradients(tmp_path, results)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert (gradient - wanted[name]).abs().max() <= 1e-5 * wanted[name].abs().max().clamp(min=1e-3), name
