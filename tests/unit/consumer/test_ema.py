"""The average of the weights, step by step."""

from collections.abc import Iterator

import pytest
import torch

from consumer.config import EmaConfig
from consumer.ema import Ema
from model.init import fill
from model.mmdit import MMDiT
from parallel.engine import Engine
from parallel.provider import MegatronProvider
from tests.distributed import tiny


@pytest.fixture
def engine() -> Iterator[Engine]:
    here = tiny.mesh(1, False)
    model = MMDiT(tiny.CONFIG, MegatronProvider(here, torch.bfloat16))
    fill(model, 3)
    yield Engine(model, tiny.optim("bf16"), here)
    here.close()


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {shard.name: shard.tensors["param"].float().clone() for shard in engine.shards()}


def test_the_average_follows_the_fp32_weights_and_starts_where_it_is_told(engine: Engine) -> None:
    ema = Ema(EmaConfig(decay=0.75, start=2), engine)
    wanted = weights(engine)
    for step in range(5):
        tiny.backward(engine, step)
        engine.step(1e-2)
        ema.update(engine, step)
        now = weights(engine)
        wanted = now if step < 2 else {name: 0.75 * old + 0.25 * now[name] for name, old in wanted.items()}
    found = {shard.name: ema.of(shard) for shard in engine.shards()}
    assert found.keys() == dict(engine.module.named_parameters()).keys()
    moved = [name for name, tensor in now.items() if not torch.equal(tensor, wanted[name])]
    assert len(moved) > 50
    for name, average in found.items():
        assert average.dtype == torch.float32
        torch.testing.assert_close(average, wanted[name], rtol=1e-6, atol=1e-8)
