"""Train the MMDiT on units that producers encode.

    torchrun --nproc-per-node 2 launch/pretrain.py launch/configs/smoke.toml [key.path=value ...] [--show]

Producers (launch/produce.py) must be running. A run that finds checkpoints of its own continues from the newest.
Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint at the end of the step. However it ends, run.dir/status.json says why and
whether to start the same command again (consumer/endings.py lists the causes and codes).
"""

import json
import os
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from consumer import shelf
from consumer.audit import Audit
from consumer.checkpoint import CheckpointError, latest, load
from consumer.ema import Ema
from consumer.endings import Cause, classify, write_status
from consumer.evaluate.pictures import Pictures
from consumer.feed import Feed
from consumer.guard import Guard
from consumer.loop import Ended, GoBack, Training, train
from consumer.metrics import JsonLines, Sink
from consumer.objective.flow import FlowObjective, text_of
from consumer.phases import Phases
from consumer.released import load_released
from consumer.saver import Saver
from consumer.sink.tensorboard import TensorBoard
from consumer.source.flight import FlightSource
from consumer.source.group import GroupSource
from consumer.stats import Stats
from consumer.stop import Stop
from consumer.watchdog import Watchdog
from launch.config import ConfigError
from launch.console import TrainingView
from launch.encoder_facts import latent_statistics
from launch.farewell import leave
from launch.settings import Settings, command_line, guarded
from model.count import training_flops
from model.init import fill
from model.mmdit import MMDiT
from parallel.engine import Engine
from parallel.layers import check_provider, provider_of
from parallel.mesh import Mesh, check
from parallel.place import place
from producer.api.deal import deal
from producer.api.malloc import tune
from producer.api.protocol import Welcome, decode, encode
from producer.api.unit import UnitId


def main() -> int:
    tune()
    settings, _ = command_line(__doc__)
    folder, run = settings.run.dir, settings.run.dir.name
    stop, watchdog = Stop(settings.train.grace_s, folder, run), Watchdog(settings.watchdog, folder, run)
    try:
        ended = job(settings, stop, watchdog)
    except BaseException as error:
        write_status(folder, classify(error), step=stop.step, message=f"{type(error).__name__}: {error}", run=run)
        raise
    finally:
        watchdog.close()
    write_status(folder, ended.cause, step=stop.step, message=ended.message, run=run)
    if ended.message:
        print(f"{ended.cause}: {ended.message}", file=sys.stderr, flush=True)
    return leave(ended.cause)


def job(settings: Settings, stop: Stop, watchdog: Watchdog) -> Ended:
    """Join the other ranks, build the model, and train until something ends it for good."""
    watchdog.beat("start")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    check(settings.mesh, num_heads=settings.model.num_attention_heads, world=world)
    check_provider(settings.mesh)
    deal(settings.recipe.units, world // settings.mesh.tp, 0)
    latent_statistics(settings.encoder.root, settings.model)
    mesh = Mesh.start(settings.mesh)
    try:
        if mesh.rank == 0:
            write_status(settings.run.dir, Cause.RUNNING, step=0, run=settings.run.dir.name)
        newest = find(settings, mesh)
        engine, ema = build(settings, mesh, None if newest else settings.train.start_from)
        guard = Guard(settings.guard)
        ended = attempt(settings, mesh, stop, watchdog, engine, ema, guard, newest)
        while isinstance(ended, GoBack):
            newest = find(settings, mesh)
            if newest is None:
                return Ended(Cause.NO_PROGRESS, f"{ended.reason}; there is no checkpoint to go back to")
            if mesh.rank == 0:
                print(f"going back to {newest}: {ended.reason}", flush=True)
            ended = attempt(settings, mesh, stop, watchdog, engine, ema, guard, newest, back=True)
        return ended
    finally:
        mesh.close()


def find(settings: Settings, mesh: Mesh) -> Path | None:
    """The newest whole checkpoint, None where there is none at all. CheckpointError if those there are damaged."""
    newest = latest(settings.checkpoint.path, mesh)
    if newest is None and not mesh.every(not shelf.steps(settings.checkpoint.path)):
        raise CheckpointError(
            f"{settings.checkpoint.path}: none of the checkpoints in it is whole (the log names what is damaged); "
            "restore one, or start anew with another checkpoint.path"
        )
    return newest


def attempt(
    settings: Settings,
    mesh: Mesh,
    stop: Stop,
    watchdog: Watchdog,
    engine: Engine,
    ema: Ema,
    guard: Guard,
    newest: Path | None,
    *,
    back: bool = False,
) -> Ended | GoBack:
    """Go on from the checkpoint `newest`, or from the weights in place, until training ends or wants to go back."""
    start = 0
    if newest:
        loaded = load(engine, ema, newest, mesh)
        start = loaded.step
        (guard.went_back if back else guard.load)(loaded.extra.get("guard", {}))
    if mesh.rank == 0 and not back:
        weights = settings.train.start_from
        fresh = f"starting from step 0 with the weights in {weights}" if weights else "starting from step 0"
        print(f"continuing from {newest}" if newest else fresh, flush=True)
    with ExitStack() as parts:
        training = assemble(settings, mesh, stop, watchdog, engine, ema, guard, start, parts)
        return train(training, start)


def assemble(
    settings: Settings,
    mesh: Mesh,
    stop: Stop,
    watchdog: Watchdog,
    engine: Engine,
    ema: Ema,
    guard: Guard,
    start: int,
    parts: ExitStack,
) -> Training:
    """Meet the producers and put the run together; `parts` closes what must be closed."""
    pull, welcome = meet(settings, mesh, start)
    if pull:
        parts.callback(pull.close)
    source = GroupSource(pull, welcome, mesh)
    sinks = listen(settings, mesh.world, start) if mesh.rank == 0 else []
    for sink in sinks:
        parts.callback(sink.close)
    mean, std = latent_statistics(settings.encoder.root, settings.model)
    buckets = frozenset((b.height, b.width) for r in settings.recipe.resolutions for b in settings.recipe.buckets(r))
    empty, _ = source.unit(UnitId("empty", 0, 0))
    objective = FlowObjective(
        settings.flow,
        seed=settings.run.seed,
        mean=mean,
        std=std,
        empty=text_of(empty[0]),
        axes=settings.model.axes_dims_rope,
        buckets=buckets,
    )
    resolved = json.loads(settings.model_dump_json())
    saver = Saver(settings.checkpoint, engine, ema, mesh, resolved, partial(watchdog.beat, "save"))
    parts.callback(saver.close)
    vae, sheets = settings.encoder.root / "vae", settings.train.metrics / "pictures"
    return Training(
        config=settings.train,
        schedule=settings.schedule,
        flops=lambda image, text: float(training_flops(settings.model, image, text)),
        mesh=mesh,
        engine=engine,
        ema=ema,
        feed=Feed(source, objective, mesh.device, settings.optim.dtype, settings.train.steps),
        objective=objective,
        stats=Stats(mesh, buckets),
        phases=(Phases(mesh.device), Phases(mesh.device)),
        audit=Audit(settings.audit, engine, ema),
        guard=guard,
        saver=saver,
        pictures=Pictures(settings.pictures, engine, ema, objective, source, vae=vae, folder=sheets),
        watchdog=watchdog,
        stop=stop,
        sinks=sinks,
    )


def build(settings: Settings, mesh: Mesh, weights: Path | None) -> tuple[Engine, Ema]:
    """The model with the released `weights` or initial ones, its optimizer and its EMA, this rank's shares."""
    dtype = settings.optim.dtype
    if weights:
        with torch.device("meta"):
            model = MMDiT(settings.model, provider_of(settings.mesh, mesh, dtype))
        load_released(weights, model, mesh, dtype)
    else:
        model = MMDiT(settings.model, provider_of(settings.mesh, mesh, dtype))
        fill(model, settings.run.seed, lambda parameter: place(parameter, mesh))
    engine = Engine(model, settings.optim, mesh)
    return engine, Ema(settings.ema, engine)


def meet(settings: Settings, mesh: Mesh, start: int) -> tuple[FlightSource | None, Welcome]:
    """Greet the producers from the first rank of each model-parallel group; what they answer, on every rank."""
    # One number for the whole job, growing from start to start: an older incarnation is refused.
    born = int(mesh.max(torch.tensor([time.time_ns() // 1_000_000], device=mesh.device)).item())
    if mesh.tp_rank > 0:
        return None, _welcome(mesh.share(None))
    pull = FlightSource(settings.pull, trainer=settings.run.dir.name, incarnation=born)
    try:
        welcome = pull.hello(start)
    except (ValueError, OSError) as error:
        mesh.share(b"e" + str(error).encode())
        raise
    shared = mesh.share(b"w" + encode(welcome))
    source = GroupSource(pull, welcome, mesh)
    pull.follow(source.step, start, settings.train.steps)
    return pull, _welcome(shared)


def _welcome(said: bytes) -> Welcome:
    if said[:1] == b"e":
        raise ConfigError(said[1:].decode())
    return decode(Welcome, said[1:])


def listen(settings: Settings, ranks: int, start: int) -> list[Sink]:
    """Where rank 0's reports go."""
    folder = settings.train.metrics
    view = TrainingView(settings.train.steps, start, every=5)
    return [JsonLines(folder / "train.jsonl", start), TensorBoard(folder / "tensorboard", start), view]


if __name__ == "__main__":
    guarded(main)
