"""Check, on every rank, all that a training needs before its first step; as a command, without training.

    torchrun --nproc-per-node 2 launch/preflight.py launch/configs/smoke.toml [key.path=value ...] [--needs 61GB]

Prints one table: each check, what was found, what would mend it. Ends with code 2 if anything failed. It asks the
producers for their status only, writes nothing but a small file in each folder for a moment, and disturbs no training
that runs with the same settings.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from consumer.endings import Cause
from consumer.preflight.exchange import Check, examine
from consumer.preflight.judge import Finding, Wanted
from consumer.released import check_released
from consumer.shelf import steps
from consumer.source.producers import status
from launch.config import ConfigError
from launch.encoder_facts import latent_statistics
from launch.estimate import size
from launch.settings import Settings, command_line, guarded
from launch.trainable import check_trainable
from model.count import parameters
from parallel.layers import check_provider
from parallel.mesh import Mesh, check
from producer.api.deal import deal

# Bytes a parameter has in a checkpoint: fp32 weight, two moments and average.
_KEPT = 16

# What may differ between ranks: where a host keeps what all hosts have, and what training does not read.
_MAY_DIFFER = (
    *("encoder.root", "encoder.device", "encoder.threads"),
    *("pull.registry", "pull.address", "pull.token", "pull.tls.ca", "pull.tls.cert", "pull.tls.key"),
)
_UNREAD = ("source", "curate", "operators", "cache", "fleet", "sample")

_WIDTH = 160  # of the table where output is no terminal


class PreflightError(ConfigError):
    """Something that training needs is missing or wrong; a line for each."""

    cause = Cause.SETTING


def main() -> int:
    settings, arguments = command_line(__doc__, _options)
    mesh = Mesh.start(settings.mesh)
    try:
        preflight(settings, mesh, arguments.needs and size(arguments.needs))
    finally:
        mesh.close()
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--needs", metavar="SIZE", help="a rank's memory as launch/estimate.py predicts it, like 61GB")


def preflight(settings: Settings, mesh: Mesh, needed_bytes: float | None = None) -> None:
    """Run every check on every rank and print the report on rank 0; PreflightError, on all ranks, if any failed.

    `needed_bytes` is what a rank will need of its device; without it, weights, gradients and optimizer alone.
    """
    config = settings.preflight
    wanted = Wanted(
        memory_bytes=least_bytes(settings, mesh) if needed_bytes is None else needed_bytes,
        disk_bytes={
            "checkpoint.path": checkpoint_bytes(settings),
            "run.dir": config.room_bytes,
            "train.metrics": config.room_bytes,
        },
        shared=("checkpoint.path",),
        clock_s=config.clock_s,
    )
    findings = examine(
        mesh,
        config,
        wanted,
        settings=leaves(settings),
        folders={
            "run.dir": settings.run.dir,
            "train.metrics": settings.train.metrics,
            "checkpoint.path": settings.checkpoint.path,
        },
        checks=checks(settings, mesh),
        checks_s=settings.pull.start_s + settings.pull.call_s,
    )
    if mesh.rank == 0:
        show(findings)
    failed = [finding for finding in findings if finding.fix]
    if failed:
        count = f"{len(failed)} check{'s' if len(failed) > 1 else ''}"
        raise PreflightError(
            "\n".join([f"pre-flight: {count} failed", *(f"{f.check}: {f.result}; {f.fix}" for f in failed)])
        )


def checks(settings: Settings, mesh: Mesh) -> dict[str, Check]:
    """What each rank tries by itself; the producers are asked by the first of each model-parallel group."""
    tried: dict[str, Check] = {
        "layout": partial(_layout, settings, mesh),
        "layers": partial(_layers, settings),
        "encoders": partial(_encoders, settings),
    }
    # A run that has checkpoints of its own goes on from them.
    if settings.train.start_from is not None and not steps(settings.checkpoint.path):
        tried["weights"] = partial(_weights, settings, settings.train.start_from)
    if mesh.tp_rank == 0:
        tried["producers"] = partial(_producers, settings)
    return tried


def _layout(settings: Settings, mesh: Mesh) -> str:
    check_trainable(settings)
    check(settings.mesh, num_heads=settings.model.num_attention_heads, world=mesh.world)
    units = deal(settings.recipe.units, mesh.dp, mesh.dp_rank)
    return f"tp {mesh.tp}{' with sp' if mesh.sp else ''}, dp {mesh.dp}, {len(units)} units a rank and step"


def _layers(settings: Settings) -> str:
    check_provider(settings.mesh)
    return f"{settings.mesh.provider}, fp8 {settings.mesh.fp8}"


def _encoders(settings: Settings) -> str:
    mean, _ = latent_statistics(settings.encoder.root, settings.model)
    return f"{settings.encoder.root}: {len(mean)} latent channels"


def _weights(settings: Settings, folder: Path) -> str:
    check_released(folder, settings.model)
    return str(folder)


def _producers(settings: Settings) -> str:
    said = status(settings.pull)
    units, ours = said.get("units_a_step"), settings.recipe.units
    if units != ours:
        raise ConfigError(
            f"recipe.units: {ours} here, and the producers' plan has {units} a step; start both with the same CONFIG"
        )
    return f"plan {said.get('plan')}, {units} units a step, {len(said.get('workers', ()))} workers"


def least_bytes(settings: Settings, mesh: Mesh) -> float:
    """A rank's weights, gradients, optimizer state and average: what it needs before any activation."""
    held = 2 + 4 if settings.optim.precision == "bf16" else 4 + 4  # weights, and gradients in fp32
    sharded = (12 if settings.optim.precision == "bf16" else 8) + 4  # main weights and moments; the average
    return parameters(settings.model) / mesh.tp * (held + sharded / mesh.dp)


def checkpoint_bytes(settings: Settings) -> float:
    """What is still to be written to `checkpoint.path`: those that stay and the one being written, less those there."""
    there = sum(path.stat().st_size for path in settings.checkpoint.path.glob("step-*/*") if path.is_file())
    whole = _KEPT * parameters(settings.model) * (settings.checkpoint.keep + 1)
    return max(0.0, float(whole - there))


def leaves(settings: Settings) -> dict[str, str]:
    """Every setting that all ranks must share, by its path, as JSON."""
    found: dict[str, str] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{path}.{name}" if path else name)
        elif path not in _MAY_DIFFER and path.split(".")[0] not in _UNREAD:
            found[path] = json.dumps(value)

    walk(json.loads(settings.model_dump_json()), "")
    return found


def show(findings: list[Finding]) -> None:
    """Print the report."""
    table = Table("pre-flight", "", "found", "to mend it")
    for finding in findings:
        state = Text("failed", "bold red") if finding.fix else Text("ok", "green")
        table.add_row(finding.check, state, Text(finding.result), Text(finding.fix))
    console = Console()
    (console if console.is_terminal else Console(width=_WIDTH)).print(table)


if __name__ == "__main__":
    guarded(main)
