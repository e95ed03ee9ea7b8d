"""The validation loss: held-out samples, each at its own fixed noise level and noise, so that steps compare."""

import time

import torch

from consumer.metrics import ValidationReport
from consumer.objective.flow import Batch, FlowObjective
from consumer.stats import Stats
from parallel.engine import Engine


@torch.no_grad()
def validation_loss(engine: Engine, objective: FlowObjective, batches: list[Batch], step: int) -> ValidationReport:
    """The mean over held-out samples of all ranks; `batches` are this rank's, any number, made at step "validation"."""
    start = time.perf_counter()
    # Ranks have different numbers of units, some none: no forward of some may gather parameters from all.
    engine.gather_parameters()
    stats = Stats(engine.mesh, ())
    for batch in batches:
        _, each = objective.loss(engine.module, batch)
        stats.add(batch, each, 0.0)
    totals = stats.read(stats.reduced().tolist())
    return ValidationReport(step, totals.mean, totals.samples, time.perf_counter() - start, totals.loss_by_level)
