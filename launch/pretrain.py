"""Train the MMDiT on units that producers encode.

    torchrun --nproc-per-node 2 launch/pretrain.py launch/configs/smoke.toml [key.path=value ...] [--show]

Producers (launch/produce.py) must be running. A run that finds checkpoints of its own continues from the newest.
Ctrl-C or SIGTERM saves a checkpoint at the end of the step.
"""

import json
import os
import time
from pathlib import Path

import torch

from consumer.checkpoint import latest, load
from consumer.ema import Ema
from consumer.loop import Training, train
from consumer.metrics import JsonLines, Sink, TensorBoard
from consumer.objective.flow import FlowObjective, text_of
from consumer.released import load_released
from consumer.source.flight import FlightSource
from consumer.source.group import GroupSource
from consumer.stop import Stop
from launch.config import ConfigError
from launch.console import TrainingView
from launch.encoder_facts import latent_statistics
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
    world = int(os.environ.get("WORLD_SIZE", "1"))
    check(settings.mesh, num_heads=settings.model.num_attention_heads, world=world)
    check_provider(settings.mesh)
    deal(settings.recipe.units, world // settings.mesh.tp, 0)
    mean, std = latent_statistics(settings.encoder.root, settings.model)
    stop = Stop(settings.train.grace_s)
    mesh = Mesh.start(settings.mesh)
    try:
        return run(settings, mesh, stop, mean, std)
    finally:
        mesh.close()


def run(settings: Settings, mesh: Mesh, stop: Stop, mean: torch.Tensor, std: torch.Tensor) -> int:
    """Build every part on this rank, resume, train."""
    newest = latest(settings.checkpoint.path, mesh)
    weights = None if newest else settings.train.start_from
    engine, ema = build(settings, mesh, weights)
    start = load(engine, ema, newest, mesh).step if newest else 0
    if mesh.rank == 0:
        fresh = f"starting from step 0 with the weights in {weights}" if weights else "starting from step 0"
        print(f"continuing from {newest}" if newest else fresh, flush=True)
    pull, welcome = meet(settings, mesh, start)
    source = GroupSource(pull, welcome, mesh)
    sinks = listen(settings, mesh.world, start) if mesh.rank == 0 else []
    try:
        empty, _ = source.unit(UnitId("empty", 0, 0))
        objective = FlowObjective(
            settings.flow,
            seed=settings.run.seed,
            mean=mean,
            std=std,
            empty=text_of(empty[0]),
            axes=settings.model.axes_dims_rope,
            buckets=frozenset(
                (b.height, b.width) for r in settings.recipe.resolutions for b in settings.recipe.buckets(r)
            ),
        )
        training = Training(
            config=settings.train,
            schedule=settings.schedule,
            checkpoint=settings.checkpoint,
            resolved=json.loads(settings.model_dump_json()),
            flops=lambda image, text: float(training_flops(settings.model, image, text)),
            mesh=mesh,
            engine=engine,
            ema=ema,
            source=source,
            objective=objective,
            sinks=sinks,
            stop=stop,
            dtype=settings.optim.dtype,
        )
        return train(training, start)
    finally:
        for sink in sinks:
            sink.close()
        if pull:
            pull.close()


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
    view = TrainingView(settings.train, ranks, start, every=5)
    return [JsonLines(folder / "train.jsonl", start), TensorBoard(folder / "tensorboard", start), view]


if __name__ == "__main__":
    guarded(main)
