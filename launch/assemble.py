"""The parts of a training put together from the settings: model, data, objective, checkpoints, and whoever listens."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from consumer.audit import Audit
from consumer.ema import Ema
from consumer.evaluate.pictures import Pictures
from consumer.feed import Feed
from consumer.guard import Guard
from consumer.loop import Training
from consumer.metrics import JsonLines, Sink
from consumer.objective.flow import FlowObjective, text_of
from consumer.phases import Phases
from consumer.profiler import Profiler
from consumer.released import load_released
from consumer.saver import Saver
from consumer.sink.lenient import Lenient
from consumer.sink.prometheus import Prometheus
from consumer.sink.tensorboard import TensorBoard
from consumer.sink.wandb import Wandb
from consumer.source.flight import FlightSource
from consumer.source.group import GroupSource
from consumer.stats import Stats
from consumer.stop import Stop
from consumer.watchdog import Watchdog
from launch.config import ConfigError
from launch.console import TrainingView
from launch.encoder_facts import latent_statistics
from launch.settings import Settings
from model.count import executed_flops, training_flops
from model.init import fill
from model.mmdit import MMDiT
from parallel.engine import Engine
from parallel.layers import provider_of
from parallel.mesh import Mesh
from parallel.place import place
from producer.api.protocol import Welcome, decode, encode
from producer.api.unit import UnitId

# Steps between lines where the output is no terminal.
_LINE_EVERY = 5


@dataclass(frozen=True, eq=False)
class Lasting:
    """What a rank keeps however often its training goes back."""

    settings: Settings
    mesh: Mesh
    stop: Stop
    watchdog: Watchdog
    engine: Engine
    ema: Ema
    guard: Guard


def assemble(lasting: Lasting, start: int, parts: ExitStack, plan: str = "") -> Training:
    """Meet the producers and put the run together; `parts` closes what must be closed.

    `plan` made the step before `start`: producers whose past is another are refused.
    """
    settings, mesh, engine, ema = lasting.settings, lasting.mesh, lasting.engine, lasting.ema
    pull, welcome = meet(settings, mesh, start, plan)
    if pull:
        parts.callback(pull.close)
        lasting.stop.then(pull.hurry)
    source = GroupSource(pull, welcome, mesh)
    sinks = listen(settings, start) if mesh.rank == 0 else []
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
    saver = Saver(settings.checkpoint, engine, ema, mesh, resolved, partial(lasting.watchdog.beat, "save"))
    parts.callback(saver.close)
    vae, sheets, tiling = settings.encoder.root / "vae", settings.train.metrics / "pictures", settings.encoder.tiling
    return Training(
        config=settings.train,
        schedule=settings.schedule,
        flops=lambda image, text: float(training_flops(settings.model, image, text)),
        executed=lambda image, text: float(executed_flops(settings.model, settings.recompute, image, text)),
        mesh=mesh,
        engine=engine,
        ema=ema,
        feed=Feed(source, objective, mesh.device, settings.optim.dtype, settings.train.steps),
        objective=objective,
        stats=Stats(mesh, buckets),
        phases=(Phases(mesh.device), Phases(mesh.device)),
        audit=Audit(settings.audit, engine, ema),
        guard=lasting.guard,
        saver=saver,
        profiler=Profiler(settings.profile, mesh.rank, settings.train.metrics / "profile"),
        pictures=Pictures(settings.pictures, engine, ema, objective, source, vae=vae, folder=sheets, tiling=tiling),
        watchdog=lasting.watchdog,
        stop=lasting.stop,
        sinks=sinks,
    )


def build(settings: Settings, mesh: Mesh, weights: Path | None) -> tuple[Engine, Ema]:
    """The model with the released `weights` or initial ones, its optimizer and its EMA, this rank's shares."""
    dtype = settings.optim.dtype
    if weights:
        with torch.device("meta"):
            model = MMDiT(settings.model, provider_of(settings.mesh, mesh, dtype), settings.recompute)
        load_released(weights, model, mesh, dtype)
    else:
        model = MMDiT(settings.model, provider_of(settings.mesh, mesh, dtype), settings.recompute)
        fill(model, settings.run.seed, lambda parameter: place(parameter, mesh))
    engine = Engine(model, settings.optim, mesh)
    return engine, Ema(settings.ema, engine)


def meet(settings: Settings, mesh: Mesh, start: int, plan: str) -> tuple[FlightSource | None, Welcome]:
    """Greet the producers from the first rank of each model-parallel group; what they answer, on every rank."""
    # One number for the whole job, growing from start to start: an older incarnation is refused.
    born = int(mesh.max(torch.tensor([time.time_ns() // 1_000_000], device=mesh.device)).item())
    if mesh.tp_rank > 0:
        return None, _welcome(mesh.share(None))
    pull = FlightSource(settings.pull, trainer=settings.run.dir.name, incarnation=born)
    try:
        welcome = pull.hello(start, plan, mesh.dp)
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


def listen(settings: Settings, start: int) -> list[Sink]:
    """Where rank 0's reports go; none of them can end a training."""
    folder, run = settings.train.metrics, settings.run.dir.name
    chosen: dict[str, Callable[[], Sink]] = {
        "train.jsonl": lambda: JsonLines(folder / "train.jsonl", start),
        "tensorboard": lambda: TensorBoard(folder / "tensorboard", start),
        "console": lambda: TrainingView(settings.train.steps, start, every=_LINE_EVERY),
    }
    if settings.prometheus.address:
        chosen["prometheus"] = lambda: Prometheus(settings.prometheus)
    if settings.wandb.project:
        resolved = json.loads(settings.model_dump_json())
        chosen["wandb"] = lambda: Wandb(settings.wandb, run, folder / "wandb", resolved)
    return [Lenient(name, opened) for name, opened in chosen.items()]
