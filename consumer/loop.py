"""The training loop: for each step its units, their losses, one optimizer step; checkpoints, validation and the end.

It knows no objective, source or model by name: a new method is another source and another objective.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field

from consumer.checkpoint import CheckpointConfig, save
from consumer.ema import Ema
from consumer.evaluate.validation import validation_loss
from consumer.metrics import Sink, StepReport, tell
from consumer.objective.flow import Batch, FlowObjective
from consumer.schedule import ScheduleConfig, rate
from consumer.source.group import GroupSource
from consumer.stop import Stop
from parallel.engine import Engine
from parallel.mesh import Mesh
from producer.api.unit import UnitId


class TrainConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    steps: int = Field(gt=0)  # optimizer steps in all
    start_from: Path | None = None  # folder of released weights, for a run without checkpoints of its own
    metrics: Path  # folder of train.jsonl and tensorboard/
    validate_every: int = Field(default=0, ge=0)  # steps between validations; 0: before the first and after the last
    peak_tflops: float = Field(default=0.0, ge=0)  # of one device, dense, for MFU; an H100 or H200 has 989 in bf16
    grace_s: float = Field(default=8.0, gt=0)  # from a signal to the forced end


@dataclass(frozen=True, eq=False)
class Training:
    """The live parts of a run on this rank."""

    config: TrainConfig
    schedule: ScheduleConfig
    checkpoint: CheckpointConfig
    resolved: dict[str, Any]  # the resolved settings, kept in every checkpoint
    flops: Callable[[int, int], float]  # of training on one sample with so many image and text tokens
    mesh: Mesh
    engine: Engine
    ema: Ema
    source: GroupSource
    objective: FlowObjective
    sinks: Sequence[Sink]  # empty but on rank 0
    stop: Stop
    dtype: torch.dtype


def train(run: Training, start: int) -> int:
    """Train from `start` steps done to the configured number; 0, or the code of the signal that ended it."""
    held_out = [_batch(run, unit, "validation")[0] for unit in run.source.validation()]
    if start == 0:
        _validate(run, held_out, 0)
    for step in range(start, run.config.steps):
        stopping = _step(run, step)
        done = step + 1
        every = run.config.validate_every
        if done == run.config.steps or (every and done % every == 0):
            _validate(run, held_out, done)
        if done == run.config.steps or done % run.checkpoint.every == 0 or stopping:
            save(run.checkpoint, run.engine, run.ema, done, run.resolved, {}, run.mesh)
            run.source.ack(step)
        if stopping:
            return stopping
    return 0


def _step(run: Training, step: int) -> int:
    """One optimizer step; the code of the signal that asks for the end, or 0, the same on all ranks."""
    start = time.perf_counter()
    units = run.source.step(step)
    totals, waited = torch.zeros(4, dtype=torch.float64), 0.0  # loss, samples, tokens, flops
    run.engine.zero_grad()
    for index, unit in enumerate(units):
        batch, wait = _batch(run, unit, step)
        waited += wait
        with nullcontext() if index == len(units) - 1 else run.engine.no_sync():
            loss, each = run.objective.loss(run.engine.module, batch)
            loss.backward()
        flops = sum(run.flops(*lengths) for lengths in zip(*batch.lengths, strict=True))
        totals += torch.tensor([loss.item(), len(each), batch.tokens, flops], dtype=torch.float64)
    loss_sum, samples, tokens, flops = run.mesh.sum(totals.to(run.mesh.device)).tolist()
    samples = max(samples, 1)  # a step whose units were all empty has nothing to divide
    run.engine.finish(samples)
    learning_rate = run.engine.config.lr * rate(run.schedule, step)
    norm, applied = run.engine.step(learning_rate)
    if applied:
        run.ema.update(run.engine, step)
    worst = run.mesh.max(torch.tensor([waited, float(run.stop.code)], dtype=torch.float64, device=run.mesh.device))
    waited, code = worst.tolist()
    seconds = time.perf_counter() - start
    report = StepReport(
        step + 1, loss_sum / samples, learning_rate, norm, applied, int(samples), int(tokens), flops, seconds, waited
    )
    tell(run.sinks, report)
    return int(code)


def _batch(run: Training, unit: UnitId, step: int | str) -> tuple[Batch, float]:
    samples, waited = run.source.unit(unit)
    return run.objective.batch(samples, step, run.mesh.device, run.dtype), waited


def _validate(run: Training, batches: list[Batch], step: int) -> None:
    if not run.source.welcome.validation_units:
        return  # the recipe holds nothing out
    tell(run.sinks, validation_loss(run.engine.module, run.objective, batches, run.mesh, step))
