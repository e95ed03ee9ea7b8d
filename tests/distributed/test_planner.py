"""The planner's states are those that an engine holds, byte for byte."""

from typing import Any

import pytest

from launch.dry import dry_mesh, dry_shapes
from launch.memory import States
from model.mmdit import MMDiT
from parallel.engine import Engine
from parallel.provider import MegatronProvider
from tests.distributed import tiny
from tests.distributed.ranks import Ranks


def held_on_rank(tp: int, sp: bool, precision: str, overlap: bool) -> dict[str, Any]:
    """Bytes of what an engine keeps."""
    from consumer.config import EmaConfig
    from consumer.ema import Ema

    here = tiny.mesh(tp, sp)
    config = tiny.optim(precision, overlap)
    engine = Engine(MMDiT(tiny.CONFIG, MegatronProvider(here, config.dtype)), config, here)
    ema = Ema(EmaConfig(), engine)
    (buffer,) = engine._ddp.buffers
    frozen = [p for p in engine.module.parameters() if not p.requires_grad]
    shards = [shard for shard in engine.shards() if "exp_avg" in shard.tensors]
    kept = 3 if precision == "bf16" else 2  # fp32 weights are the model's own
    result = {
        "weights": buffer.param_data.nbytes + sum(p.nbytes for p in frozen),
        "gradients": buffer.grad_data.nbytes,
        "optimizer": sum(shard.tensors["exp_avg"].nbytes for shard in shards) * kept,
        "average": sum(ema.of(shard).nbytes for shard in engine.shards()),
    }
    here.close()
    return result


@pytest.mark.parametrize(
    ("world", "tp", "sp", "precision", "overlap"),
    [(1, 1, False, "fp32", True), (2, 2, True, "bf16", True), (4, 2, False, "bf16", True), (4, 2, True, "fp32", False)],
)
def test_states_are_those_of_an_engine(
    ranks: Ranks, world: int, tp: int, sp: bool, precision: str, overlap: bool
) -> None:
    real = ranks.run(world, held_on_rank, deadline_s=240, tp=tp, sp=sp, precision=precision, overlap=overlap)
    config = tiny.optim(precision, overlap)
    with dry_mesh(tp, sp) as mesh:
        states = States.of(dry_shapes(tiny.CONFIG, mesh, config.dtype), config, world // tp)
    assert {item["weights"] for item in real} == {states.weights}
    assert {item["gradients"] for item in real} == {states.gradients}
    # A share may hold padding, of which no state is kept: a rank has at most what is planned, all together nearly that.
    for name, planned in (("optimizer", states.optimizer), ("average", states.average)):
        assert max(item[name] for item in real) <= planned
        assert sum(item[name] for item in real) == pytest.approx(planned * world, rel=0.02)
