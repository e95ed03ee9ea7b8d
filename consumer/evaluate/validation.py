"""The validation loss: held-out samples, each at its own fixed noise level and noise, so that steps compare."""

import time

import torch

from consumer.metrics import ValidationReport
from consumer.objective.flow import Batch, FlowObjective, Velocity
from consumer.stats import Stats
from parallel.mesh import Mesh


@torch.no_grad()
def validation_loss(
    model: Velocity, objective: FlowObjective, batches: list[Batch], mesh: Mesh, step: int
) -> ValidationReport:
    """The mean over held-out samples of all ranks; `batches` are this rank's, made at step "validation"."""
    start = time.perf_counter()
    stats = Stats(mesh, ())
    for batch in batches:
        _, each = objective.loss(model, batch)
        stats.add(batch, each, 0.0, 0.0)
    totals = stats.read(stats.reduced().tolist())
    return ValidationReport(step, totals.mean, totals.samples, time.perf_counter() - start, totals.loss_by_level)
