"""The validation loss: held-out samples, each at its own fixed noise level and noise, so that steps compare."""

import time

import torch

from consumer.metrics import ValidationReport
from consumer.objective.flow import Batch, FlowObjective, Velocity
from parallel.mesh import Mesh


@torch.no_grad()
def validation_loss(
    model: Velocity, objective: FlowObjective, batches: list[Batch], mesh: Mesh, step: int
) -> ValidationReport:
    """The mean over held-out samples of all ranks; `batches` are this rank's, made at step "validation"."""
    start = time.perf_counter()
    totals = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        loss, each = objective.loss(model, batch)
        totals += torch.tensor([loss.item(), len(each)], dtype=torch.float64)
    loss_sum, samples = mesh.sum(totals.to(mesh.device)).tolist()
    return ValidationReport(step, loss_sum / samples, int(samples), time.perf_counter() - start)
