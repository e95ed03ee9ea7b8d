"""The training loop: for each step its units, their losses, one optimizer step; checkpoints, validation and the end.

It knows no objective, source or model by name: a new method is another source and another objective. Every decision is
taken from numbers that are the same on all ranks. They are read from the device once a step, where the optimizer must
know the gradient's norm; whatever is reported rides along.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from consumer.audit import Audit
from consumer.config import TrainConfig
from consumer.ema import Ema
from consumer.endings import Cause, cause_of_signal, classify
from consumer.evaluate.pictures import Pictures
from consumer.evaluate.validation import validation_loss
from consumer.feed import Fed, Feed
from consumer.guard import Guard, Verdict, record_bad
from consumer.metrics import CheckpointReport, Sink, StepReport, tell
from consumer.objective.flow import FlowObjective
from consumer.phases import Phases
from consumer.profiler import Profiler
from consumer.saver import Saver, SaveReport
from consumer.schedule import ScheduleConfig, rate
from consumer.stats import Stats, Totals, peak_memory
from consumer.stop import Stop
from consumer.watchdog import Watchdog
from model.count import utilisation
from parallel.engine import Engine
from parallel.mesh import Mesh


class GoBack(NamedTuple):
    """Training returns to the newest checkpoint; the guard then skips the steps that led here."""

    reason: str


class Ended(NamedTuple):
    """Why training is over, and what there is to say of it."""

    cause: Cause
    message: str = ""


@dataclass(frozen=True, eq=False)
class Training:
    """The live parts of a run on this rank."""

    config: TrainConfig
    schedule: ScheduleConfig
    flops: Callable[[int, int], float]  # of training on one sample with so many image and text tokens
    executed: Callable[[int, int], float]  # what that is with recompute
    mesh: Mesh
    engine: Engine
    ema: Ema
    feed: Feed
    objective: FlowObjective
    stats: Stats
    phases: tuple[Phases, Phases]  # of steps in turn: on CUDA a step's last phase ends after its numbers are read
    audit: Audit
    guard: Guard
    saver: Saver
    profiler: Profiler
    pictures: Pictures
    watchdog: Watchdog
    stop: Stop
    sinks: Sequence[Sink]  # empty but on rank 0


class Told(NamedTuple):
    """What every rank knows of a step once its gradients are finished."""

    totals: Totals
    norm: float  # of the mean gradient, before clipping
    waited: float  # seconds for data, the slowest rank's
    code: int  # of the signal that asks for the end, or 0
    saving: int  # what the checkpoint's writers say
    starved: bool  # some rank has no data for the next step
    corrupt: int  # what the audit found, or 0
    memory: int  # bytes, the largest peak


def train(run: Training, start: int) -> Ended | GoBack:
    """Train from `start` steps done to the configured number, or until something ends it; alike on all ranks.

    GoBack: the guard wants the newest checkpoint again.
    """
    run.stop.step = start
    run.watchdog.beat("load", start)
    run.feed.ahead(start)
    if not run.mesh.every(run.feed.error is None):
        return _starved(run)
    held_out = run.feed.validation()
    if start == 0:
        _validate(run, held_out, 0)
    run.audit.sealed(start)
    for step in range(start, run.config.steps):
        with run.profiler.step(step + 1):
            ended = _step(run, step)
        if isinstance(ended, GoBack) or (ended and ended.cause is Cause.CORRUPTION):
            # What is in memory now is not to be saved; a save in flight is, but not of memory that changed by itself.
            if isinstance(ended, GoBack):
                run.saver.settle()
            return ended
        done = run.stop.step = step + 1
        run.watchdog.beat("report", done)
        last = ended is not None or done == run.config.steps
        _evaluate(run, held_out, done)
        if run.saver.due(done) or last:
            run.watchdog.beat("save")
            kept = {"guard": run.guard.state(), "plan": run.feed.source.plan(step).plan}
            _acknowledge(run, run.saver.save(done, kept, wait=last))
        if ended:
            return ended
    return Ended(Cause.DONE)


def _step(run: Training, step: int) -> Ended | GoBack | None:
    """One optimizer step; why it was the last one, if something ended it."""
    start = time.perf_counter()
    phases, before = run.phases[step % 2], run.phases[(step + 1) % 2]
    phases.start()
    fed = run.feed.take(step)
    losses = _backward(run, step, fed, phases)
    told = _finish(run, step, phases)
    if told.corrupt:
        return Ended(Cause.CORRUPTION, run.audit.said(told.corrupt, step))
    verdict = run.guard.judge(step, told.totals.mean, told.norm)
    run.watchdog.beat("optimizer")
    phases.enter("optimizer")
    learning_rate = run.engine.config.lr * rate(run.schedule, step)
    run.saver.taken()  # the checkpoint in flight was copied until here, and pictures change weights too
    if verdict.action == "apply":
        run.engine.apply(learning_rate, told.norm, max(told.totals.samples, 1))
        run.ema.update(run.engine, step)
    else:
        _record(run, step, verdict, fed, losses)
    run.audit.sealed(step + 1)
    phases.end()
    _acknowledge(run, run.saver.heard(told.saving))
    _tell(run, step, told, verdict, learning_rate, time.perf_counter() - start, before.seconds())
    return _end(run, told, verdict)


def _backward(run: Training, step: int, fed: Sequence[Fed], phases: Phases) -> list[Tensor]:
    """Forward and backward of each unit, gradients adding up; the losses [b] of each one's samples."""
    run.stats.start()
    run.engine.zero_grad()
    replays = run.audit.replays(step)
    if replays:  # once to compare with
        for index, unit in enumerate(fed):
            with run.engine.no_sync():
                _unit(run, step, unit, phases, first=index == 0)
        run.audit.computed()
        run.engine.zero_grad()
    losses = []
    for index, unit in enumerate(fed):
        # Gradients are reduced with the last unit's backward, or when they have been compared.
        with nullcontext() if index == len(fed) - 1 and not replays else run.engine.no_sync():
            each = _unit(run, step, unit, phases, first=index == 0 and not replays)
        samples = list(zip(*unit.batch.lengths, strict=True))
        flops, executed = (sum(count(*lengths) for lengths in samples) for count in (run.flops, run.executed))
        run.stats.add(unit.batch, each, flops, executed * (1 + replays))
        losses.append(each)
    if replays:
        run.audit.computed()
        run.engine.reduce()
    return losses


def _unit(run: Training, step: int, unit: Fed, phases: Phases, *, first: bool) -> Tensor:
    """Forward and backward of a unit; the losses [b] of its samples."""
    run.watchdog.beat("forward")
    phases.enter("forward")
    loss, each = run.objective.loss(run.engine.module, unit.batch)
    run.watchdog.beat("backward")
    phases.enter("backward")
    if first:
        run.audit.gathered(step)
    loss.backward()
    return each


def _finish(run: Training, step: int, phases: Phases) -> Told:
    """Reduce gradients and numbers; while the device is at it make the next step's batches; then wait for it, once."""
    run.watchdog.beat("reduce")
    phases.enter("communication")
    run.engine.finish()
    norm, sums = run.engine.norm(), run.stats.reduced()
    run.watchdog.beat("data")
    phases.enter("data")
    run.feed.ahead(step + 1)
    run.watchdog.beat("numbers")
    phases.enter("communication")
    starved = run.feed.error is not None
    mine = [run.feed.waited, run.stop.said(), run.saver.said(), starved, peak_memory(run.mesh.device)]
    host = run.mesh.sent([float(number) for number in mine])
    worst = run.mesh.max(torch.cat([host, run.audit.found().double()[None]]))
    numbers = torch.cat([run.mesh.alike(sums), norm.double()[None], worst]).tolist()
    totals = run.stats.read(numbers)
    norm_sum, slowest, code, saving, any_starved, memory, corrupt = numbers[run.stats.width :]
    return Told(
        totals,
        norm_sum / max(totals.samples, 1),
        slowest,
        run.stop.heard(int(code)),
        int(saving),
        bool(any_starved),
        int(corrupt),
        int(memory),
    )


def _end(run: Training, told: Told, verdict: Verdict) -> Ended | GoBack | None:
    """Why training ends after this step; the step itself is complete."""
    if verdict.action == "roll back":
        return GoBack(verdict.reason)
    if verdict.action == "stop":
        assert verdict.cause is not None
        return Ended(verdict.cause, verdict.reason)
    if told.code:
        return Ended(cause_of_signal(told.code - 128))
    return _starved(run) if told.starved else None


def _starved(run: Training) -> Ended:
    """This rank's own trouble where it has one; the others leave it to that rank to say."""
    error = run.feed.error
    if error is None:
        return Ended(Cause.PEER, "another rank has no data; its log says why")
    return Ended(classify(error), f"{type(error).__name__}: {error}")


def _evaluate(run: Training, held_out: list[Fed], done: int) -> None:
    every = run.config.validate_every
    if done == run.config.steps or (every and done % every == 0):
        _validate(run, held_out, done)
    if run.pictures.due(done):
        run.watchdog.beat("pictures")
        report = run.pictures.draw(done)
        if report:
            tell(run.sinks, report)


def _validate(run: Training, held_out: list[Fed], done: int) -> None:
    if not run.feed.source.welcome.validation_units:
        return  # the recipe holds nothing out
    run.watchdog.beat("validation")
    batches = [fed.batch for fed in held_out]
    tell(run.sinks, validation_loss(run.engine, run.objective, batches, done))


def _acknowledge(run: Training, report: SaveReport | None) -> None:
    """Say how a save ended; producers may forget what is in a published checkpoint."""
    if report:
        said = CheckpointReport(
            report.step, report.published, report.why, report.seconds, report.stall_s, report.nbytes
        )
        tell(run.sinks, said)
    if report and report.published:
        run.feed.source.ack(report.step - 1)


def _record(run: Training, step: int, verdict: Verdict, fed: Sequence[Fed], losses: Sequence[Tensor]) -> None:
    """Write out the samples of a step that was not applied, each rank its own."""
    units, keys = [unit.unit for unit in fed], [unit.batch.keys for unit in fed]
    record_bad(run.config.metrics, run.mesh.rank, step, verdict.reason, units, keys, [each.tolist() for each in losses])


def _tell(
    run: Training,
    step: int,
    told: Told,
    verdict: Verdict,
    learning_rate: float,
    seconds: float,
    split: dict[str, float],
) -> None:
    totals, peak = told.totals, run.config.peak_tflops * 1e12 * run.mesh.world
    in_force = run.feed.source.plan(step)
    report = StepReport(
        step=step + 1,
        loss=totals.mean,
        rate=learning_rate,
        gradient_norm=told.norm,
        applied=verdict.action == "apply",
        samples=totals.samples,
        tokens=totals.tokens,
        flops=totals.flops,
        seconds=seconds,
        wait_s=told.waited,
        mfu=utilisation(totals.flops, seconds, peak) if peak else None,
        peak_memory=told.memory,
        loss_by_level=totals.loss_by_level,
        loss_by_bucket=totals.loss_by_bucket,
        split=split,
        skipped="" if verdict.action == "apply" else verdict.reason,
        executed=totals.executed,
        hfu=utilisation(totals.executed, seconds, peak) if peak else None,
        plan=in_force.plan,
        entry=in_force.entry,
    )
    tell(run.sinks, report)
