"""The validation loss is that of the whole held-out set, however it is dealt to ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from consumer.evaluate.validation import validation_loss
from consumer.objective.flow import FlowObjective
from model.config import FlowConfig
from model.init import fill
from model.mmdit import MMDiT
from producer.api.unit import UnitId, unpack
from producer.synthetic import SyntheticJob, SyntheticMaker
from tests.distributed import tiny
from tests.distributed.ranks import Ranks

UNITS = 3  # of four samples; one of four ranks has none


def validate_on_rank(folder: str) -> list[Any]:
    """Losses before and after a step, with every overlap: parameters are on their way when validation starts."""
    here = tiny.mesh(1, False)
    engine = tiny.build(Path(folder) / "weights.safetensors", here, tiny.optim())
    flow = FlowObjective(
        FlowConfig(), seed=3, mean=torch.zeros(4), std=torch.ones(4), empty=torch.zeros(2, 24), axes=(8, 4, 4)
    )
    maker = SyntheticMaker(SyntheticJob(bucket="32x48", channels=4, tokens=5, width=24))
    units = [unpack(maker(UnitId("validation", 0, k))[0])[1] for k in range(here.dp_rank, UNITS, here.dp)]
    batches = [flow.batch(unit, "validation", here.device, torch.float32) for unit in units]
    reports = []
    for step in range(2):
        reports.append(validation_loss(engine, flow, batches, step))
        tiny.backward(engine, step)
        engine.step(1e-2)
    reports.append(validation_loss(engine, flow, batches, 2))
    here.close()
    return [[r.step, r.loss, r.samples, {k: list(part) for k, part in r.loss_by_level.items()}] for r in reports]


def test_ranks_without_held_out_units_hold_up_nobody(ranks: Ranks, tmp_path: Path) -> None:
    model = MMDiT(tiny.CONFIG)
    fill(model, 3)
    save_file({name: p.detach() for name, p in model.named_parameters()}, tmp_path / "weights.safetensors")
    (alone,) = ranks.run(1, validate_on_rank, folder=tmp_path)
    many = ranks.run(4, validate_on_rank, folder=tmp_path)
    assert all(rank == many[0] for rank in many)
    for (step, loss, samples, levels), (_, wanted, _, parts) in zip(many[0], alone, strict=True):
        assert samples == 12 and sum(count for _, count in levels.values()) == 12, step
        assert loss == pytest.approx(wanted, rel=1e-4)
        assert levels.keys() == parts.keys()
    assert len({loss for _, loss, *_ in alone}) == 3
