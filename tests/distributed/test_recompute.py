"""Training with recompute is training without it, bit for bit, on every layout and with every overlap."""

from typing import Any

import pytest
import torch

from model.config import RecomputeConfig
from model.init import fill
from model.mmdit import MMDiT
from parallel.engine import Engine
from parallel.mesh import Mesh
from parallel.place import place
from parallel.provider import MegatronProvider
from tests.distributed import tiny
from tests.distributed.ranks import Ranks
from tests.distributed.test_engine import bits

KINDS: list[dict[str, Any]] = [
    {},
    {"parts": ("norm", "gelu", "core")},
    {"parts": ("attention", "gelu"), "blocks": ((1, 3),)},
    {"parts": ("attention", "mlp")},
    {"parts": ("block",), "every": 2},
]


def train_on_rank(tp: int, sp: bool, precision: str, bias_apart: bool) -> list[Any]:
    """For each kind the losses and norms of two steps, and a hash of all that this rank holds after them."""
    here = tiny.mesh(tp, sp)
    found = [trained(here, RecomputeConfig(**kind), precision, bias_apart) for kind in KINDS]
    here.close()
    return found


def trained(here: Mesh, recompute: RecomputeConfig, precision: str, bias_apart: bool) -> list[Any]:
    # Buckets of a matrix or less: every one is reduced and gathered while others are computed.
    config = tiny.optim(precision, bucket_elements=3000)
    model = MMDiT(tiny.CONFIG, MegatronProvider(here, config.dtype, bias_apart=bias_apart), recompute)
    fill(model, 3, lambda parameter: place(parameter, here))
    with torch.no_grad():
        for parameter in model.parameters():  # initial gates are 0, and would hide the blocks' gradients
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    engine = Engine(model, config, here)
    steps = [(*tiny.backward(engine, step), *engine.step(3e-3)) for step in range(2)]
    return [steps, bits(list(engine.shards()))]


@pytest.mark.parametrize(
    ("world", "tp", "sp", "bias_apart", "precision"),
    [
        (1, 1, False, False, "fp32"),
        (2, 1, False, False, "bf16"),
        (4, 1, False, False, "fp32"),
        (2, 2, False, True, "fp32"),
        (2, 2, True, False, "bf16"),
        (4, 2, True, True, "bf16"),
    ],
)
def test_every_kind_trains_to_the_same_bits(
    ranks: Ranks, world: int, tp: int, sp: bool, bias_apart: bool, precision: str
) -> None:
    results = ranks.run(world, train_on_rank, deadline_s=120, tp=tp, sp=sp, precision=precision, bias_apart=bias_apart)
    for kept, *others in results:
        for kind, found in zip(KINDS[1:], others, strict=True):
            assert found == kept, kind
    assert all(result[0][0] == results[0][0][0] for result in results)
