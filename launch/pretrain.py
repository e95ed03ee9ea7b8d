"""Train the MMDiT on units that producers encode.

    torchrun --nproc-per-node 2 launch/pretrain.py launch/configs/smoke.toml [key.path=value ...] [--show]

Producers (launch/produce.py) must be running. A run that finds checkpoints of its own continues from the newest.
Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint at the end of the step. However it ends, run.dir/status.json says why and
whether to start the same command again (consumer/endings.py lists the causes and codes).
"""

import os
import sys
from contextlib import ExitStack

from consumer import shelf
from consumer.checkpoint import CheckpointError, CheckpointReader, load, newest
from consumer.endings import Cause, classify, write_status
from consumer.guard import Guard
from consumer.loop import Ended, GoBack, train
from consumer.sink.wandb import check_wandb
from consumer.stop import Stop
from consumer.watchdog import Watchdog
from launch.assemble import Lasting, assemble, build
from launch.encoder_facts import latent_statistics
from launch.farewell import leave
from launch.preflight import preflight
from launch.settings import Settings, command_line, guarded
from parallel.board import Call
from parallel.layers import check_provider
from parallel.mesh import Mesh, check
from producer.api.deal import deal
from producer.api.malloc import tune


def main() -> int:
    tune()
    settings, _ = command_line(__doc__)
    folder, run = settings.run.dir, settings.run.dir.name
    stop, watchdog = Stop(settings.train.grace_s, folder, run), Watchdog(settings.watchdog, folder, run)
    try:
        with ExitStack() as last:  # leaving the other ranks may take long where one is gone
            try:
                ended = job(settings, stop, watchdog, last)
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
                write_status(folder, classify(error), step=stop.step, message=said, run=run)
                raise
            write_status(folder, ended.cause, step=stop.step, message=ended.message, run=run)
    finally:
        watchdog.close()
    if ended.message:
        print(f"{ended.cause}: {ended.message}", file=sys.stderr, flush=True)
    return leave(ended.cause)


def job(settings: Settings, stop: Stop, watchdog: Watchdog, last: ExitStack) -> Ended:
    """Join the other ranks, build the model, and train until something ends it for good; `last` leaves the ranks."""
    watchdog.beat("start")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    check(settings.mesh, num_heads=settings.model.num_attention_heads, world=world)
    check_provider(settings.mesh)
    check_wandb(settings.wandb)
    settings.recompute.of(settings.model.num_layers)
    deal(settings.recipe.units, world // settings.mesh.tp, 0)
    latent_statistics(settings.encoder.root, settings.model)
    mesh = Mesh.start(settings.mesh)
    last.callback(mesh.close)
    stop.relay(Call("stop"))
    if mesh.rank == 0:
        write_status(settings.run.dir, Cause.RUNNING, step=0, run=settings.run.dir.name)
    watchdog.beat("preflight")
    preflight(settings, mesh)
    watchdog.beat("load")
    found = find(settings, mesh)
    engine, ema = build(settings, mesh, None if found else settings.train.start_from)
    lasting = Lasting(settings, mesh, stop, watchdog, engine, ema, Guard(settings.guard))
    ended = attempt(lasting, found)
    while isinstance(ended, GoBack):
        watchdog.beat("load")
        found = find(settings, mesh)
        if found is None:
            return Ended(Cause.NO_PROGRESS, f"{ended.reason}; there is no checkpoint to go back to")
        if mesh.rank == 0:
            print(f"going back to {found.path}: {ended.reason}", flush=True)
        ended = attempt(lasting, found, back=True)
    return ended


def find(settings: Settings, mesh: Mesh) -> CheckpointReader | None:
    """The newest whole checkpoint, None where there is none at all. CheckpointError if those there are damaged."""
    found = newest(settings.checkpoint.path, mesh)
    if found is None and not mesh.every(not shelf.steps(settings.checkpoint.path)):
        raise CheckpointError(
            f"{settings.checkpoint.path}: none of the checkpoints in it is whole (the log names what is damaged); "
            "restore one, or start anew with another checkpoint.path"
        )
    return found


def attempt(lasting: Lasting, found: CheckpointReader | None, *, back: bool = False) -> Ended | GoBack:
    """Go on from the checkpoint `found`, or from the weights in place, until training ends or wants to go back."""
    mesh, guard = lasting.mesh, lasting.guard
    start, plan = 0, ""
    if found:
        loaded = load(lasting.engine, lasting.ema, found, mesh)
        start, plan = loaded.step, loaded.extra.get("plan", "")
        (guard.went_back if back else guard.load)(loaded.extra.get("guard", {}))
    if mesh.rank == 0 and not back:
        weights = lasting.settings.train.start_from
        fresh = f"starting from step 0 with the weights in {weights}" if weights else "starting from step 0"
        print(f"continuing from {found.path}" if found else fresh, flush=True)
    with ExitStack() as parts:
        other = lasting.settings.train.other_plan
        training = assemble(lasting, start, parts, "" if other else plan)
        served = training.feed.source.welcome.plan
        if mesh.rank == 0 and plan not in ("", served):
            print(f"the plan is another one: {plan} up to step {start}, {served} from there on", flush=True)
        return train(training, start)


if __name__ == "__main__":
    guarded(main)
