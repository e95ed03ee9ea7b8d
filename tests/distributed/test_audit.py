"""Bits that flip in a rank's memory while it trains are found before they spread, and the rank is named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from consumer.audit import Audit, checksum
from consumer.config import AuditConfig, EmaConfig
from consumer.ema import Ema
from tests.distributed import tiny
from tests.distributed.ranks import Ranks
from tests.distributed.test_engine import start as start

FLIPS = 18
KINDS = ("param", "exp_avg", "exp_avg_sq", "ema", "replica", "gradient")


def _flip(tensor: Tensor, g: torch.Generator) -> None:
    """One bit of one element."""
    raw = tensor.view(torch.uint8)
    place = int(torch.randint(raw.numel(), (), generator=g))
    raw[place] ^= 1 << int(torch.randint(8, (), generator=g))


def audited(folder: Path, tp: int, precision: str, flips: int) -> dict[str, Any]:
    """On a rank: `flips` steps with one flipped bit each, then as many without, and what the audit says of each."""
    here = tiny.mesh(tp, False)
    try:
        engine = tiny.build(Path(folder) / "weights.safetensors", here, tiny.optim(precision))
        ema = Ema(EmaConfig(), engine)
        audit, g = Audit(AuditConfig(every=1, replay_every=1), engine, ema), torch.Generator().manual_seed(7)
        found, planted = [], []
        for step in range(2 * flips):
            audit.sealed(step)
            # The same draws on every rank; one of them acts on its own.
            victim = int(torch.randint(here.world, (), generator=g))
            kind = KINDS[step % len(KINDS)]
            early, state = kind not in ("replica", "gradient") and step < flips, g.get_state()
            shards = list(engine.shards())
            shard = shards[step % len(shards)]
            if early and here.rank == victim:
                held = shard.tensors | {"ema": ema.of(shard)}
                _flip(held.get(kind, held["param"]), g)
            late = step < flips and here.rank == victim
            for turn in range(2):
                engine.zero_grad()
                with engine.no_sync():
                    loss, count = tiny.unit_loss(engine.module, step, here.dp_rank)
                    if turn == 0:
                        audit.gathered(step)
                        if late and kind == "replica":
                            _flip(engine.replica()[0], g)
                    loss.backward()
                if late and kind == "gradient" and turn == step // len(KINDS) % 2:
                    _flip(engine.gradients()[0], g)
                audit.computed()
            engine.reduce()
            engine.finish(count)
            named = int(here.max(audit.found().double()).item())
            found.append(named)
            code = victim + 1 if kind == "gradient" else here.world + victim + 1
            planted.append(code if step < flips else 0)
            g.set_state(state)
            # Whatever was flipped is not what is tested next: everybody starts again from the same place.
            engine.gather_parameters()
        return {"found": found, "planted": planted}
    finally:
        here.close()


@pytest.mark.parametrize(("world", "tp", "precision"), [(3, 1, "fp32"), (4, 2, "bf16"), (2, 1, "bf16")])
def test_every_flipped_bit_of_weights_moments_average_and_gradients_is_found_and_its_rank_named(
    ranks: Ranks, start: Path, world: int, tp: int, precision: str
) -> None:
    results = ranks.run(world, audited, folder=start, tp=tp, precision=precision, flips=FLIPS)
    for said in results:
        assert said["found"] == said["planted"]


def test_a_checksum_tells_any_flipped_bit_at_any_alignment() -> None:
    g = torch.Generator().manual_seed(1)
    whole = torch.randn(103, generator=g)
    for first in range(4):
        for dtype in (torch.float32, torch.bfloat16):
            for last in range(60, 64):
                part = whole.to(dtype)[first:last]
                before = checksum([part])
                _flip(part, g)
                assert checksum([part]) != before


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_two_hundred_flipped_bits_are_found_and_none_where_there_is_none(ranks: Ranks, start: Path) -> None:
    for said in ranks.run(3, audited, deadline_s=1400, folder=start, tp=1, precision="bf16", flips=200):
        assert said["found"] == said["planted"]
