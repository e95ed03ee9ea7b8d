"""Megatron's columns that hand their bias out, as on CUDA, are those that add it themselves."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.init import fill
from model.mmdit import MMDiT
from parallel.engine import Engine
from parallel.place import place
from parallel.provider import MegatronProvider
from parallel.shard import held
from tests.distributed import tiny
from tests.distributed.ranks import Ranks


def both_on_rank(folder: str, tp: int, sp: bool) -> list[str]:
    """Write this rank's loss and gradients with biases inside and apart; how many columns hand theirs out in each."""
    here, said = tiny.mesh(tp, sp), []
    for apart in (None, True):
        model = MMDiT(tiny.CONFIG, MegatronProvider(here, torch.float32, bias_apart=apart))
        fill(model, 3, lambda parameter: place(parameter, here))
        with torch.no_grad():
            for parameter in model.parameters():  # initial biases and gates are 0, and would hide theirs
                generator = torch.Generator().manual_seed(parameter.numel())
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        engine = Engine(model, tiny.optim(), here)
        said.append(sum(getattr(module, "skip_bias_add", False) for module in model.modules()))
        loss, _ = tiny.backward(engine, 1)
        shards = zip(held(engine._optimizer), engine.shards(), strict=False)
        found = {f"{shard.name}/{shard.start}": item.gradient.clone() for item, shard in shards}
        save_file(found | {"loss": torch.tensor(loss)}, Path(folder) / f"{apart}-{here.rank}.safetensors")
    here.close()
    return said


@pytest.mark.parametrize(("world", "tp", "sp"), [(2, 2, False), (2, 2, True), (2, 1, False)])
def test_loss_and_every_gradient_are_the_same_with_biases_apart(
    ranks: Ranks, tmp_path: Path, world: int, tp: int, sp: bool
) -> None:
    said = ranks.run(world, both_on_rank, folder=tmp_path, tp=tp, sp=sp)
    assert said == [[0, 2 * tiny.CONFIG.num_layers]] * world
    for rank in range(world):
        inside, apart = (load_file(tmp_path / f"{kind}-{rank}.safetensors") for kind in (None, True))
        assert inside.keys() == apart.keys()
        for name, want in inside.items():
            assert (apart[name] - want).abs().max() <= 1e-5 * want.abs().max().clamp(min=1e-3), name
