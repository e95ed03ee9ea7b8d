"""What a configuration needs of each GPU and how fast it could be, before any GPU is taken.

    python launch/estimate.py CONFIG --gpus 64 --memory 80GB [key.path=value ...] [--suggest] [--json]

Runs on a laptop, in seconds: the real model makes its shapes and runs a forward and backward of its costliest unit on
tensors without memory (launch/dry.py). --suggest tries layouts for the same pictures a step and lists the best of each
kind, then what does not do and why. Code 1 says that the configuration does not fit. docs/estimate.md has examples.
"""

import argparse
import json
import re
from typing import Any

from launch.config import ConfigError
from launch.memory import GIB
from launch.planner import Choice, Estimate, Job, PlannerError, Refused, estimate, suggest
from launch.settings import Settings, command_line, guarded
from launch.traffic import Rates

# Tokens of a caption where nothing else is said: long descriptions, as a captioner writes them. Our choice.
TEXT = 256

# CUDA's context and kernels, cuBLAS's workspaces, NCCL's buffers of two to three groups. Our allowance, to be measured.
RESERVE = "2.5GB"

_UNITS = {"": 1, "B": 1, "MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": GIB}


def main() -> int:
    settings, arguments = command_line(__doc__, _options)
    job, choice = planned(settings, arguments)
    result = estimate(job, choice)
    fitting, refused = suggest(job) if arguments.suggest else ([], [])
    if arguments.json:
        print(json.dumps({"estimate": as_json(result)} | _suggested(arguments.suggest, fitting, refused), indent=2))
    else:
        print("\n".join(report(result)))
        if arguments.suggest:
            print("\n".join(["", *table(fitting, refused)]))
    return 0 if result.margin >= 0 else 1


def _options(parser: argparse.ArgumentParser) -> None:
    rates = Rates()
    parser.add_argument("--gpus", type=int, required=True, help="of the whole job")
    parser.add_argument("--memory", type=size, required=True, help="of one GPU: 80GB is 80e9 bytes, 79GiB 79 * 2^30")
    parser.add_argument("--suggest", action="store_true", help="other layouts for the same pictures a step, best first")
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="whose form of the model")
    parser.add_argument("--text", type=int, default=TEXT, help=f"mean tokens of a caption ({TEXT})")
    parser.add_argument("--reserve", type=size, default=size(RESERVE), help=f"what CUDA and NCCL take ({RESERVE})")
    parser.add_argument("--tflops", type=float, default=rates.tflops, help=f"peak of a GPU, bf16 ({rates.tflops:g})")
    parser.add_argument("--efficiency", type=float, default=rates.efficiency, help=f"reached ({rates.efficiency:g})")
    parser.add_argument("--hbm-tbs", type=float, default=rates.hbm_tbs, help=f"memory, TB/s ({rates.hbm_tbs:g})")
    parser.add_argument("--intra-gbs", type=float, default=rates.intra_gbs, help=f"in a machine ({rates.intra_gbs:g})")
    parser.add_argument("--inter-gbs", type=float, default=rates.inter_gbs, help=f"out, a GPU ({rates.inter_gbs:g})")
    parser.add_argument("--node", type=int, default=rates.node, help=f"GPUs a machine ({rates.node})")


def size(text: str) -> int:
    """Bytes in a size like 80GB or 79GiB. Raises ConfigError."""
    found = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", text.strip())
    if not found or found[2].upper() not in _UNITS:
        raise ConfigError(f"{text!r} is no size; write it like 80GB (10^9 bytes) or 79GiB (2^30)")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def planned(settings: Settings, arguments: argparse.Namespace) -> tuple[Job, Choice]:
    """The job and the layout that the settings and the command line describe."""
    for name in ("gpus", "memory", "text", "tflops", "efficiency", "hbm_tbs", "intra_gbs", "inter_gbs", "node"):
        if getattr(arguments, name) <= 0:
            raise PlannerError(f"--{name.replace('_', '-')}: {getattr(arguments, name)} must be above 0")
    rates = Rates(
        arguments.tflops,
        arguments.efficiency,
        arguments.hbm_tbs,
        arguments.intra_gbs,
        arguments.inter_gbs,
        arguments.node,
    )
    job = Job(
        settings.model.model_copy(update={"attention": "auto"}),
        settings.recipe,
        settings.optim,
        arguments.gpus,
        arguments.memory,
        arguments.text,
        arguments.reserve,
        rates,
        arguments.device,
    )
    return job, Choice(settings.mesh.tp, settings.mesh.sp, settings.recompute, settings.recipe.samples)


def report(one: Estimate) -> list[str]:
    """The estimate for people, a line each."""
    job, choice, worst = one.job, one.choice, one.work.worst
    grid, text = worst.samples[0]
    shape = f"{len(worst.samples)} of {grid[0] * 16}x{grid[1] * 16}, {worst.tokens:,} tokens,"
    lines = [
        f"{job.gpus} GPUs of {job.memory / 1e9:.1f} GB: {layout(choice)}, data parallel {one.dp}",
        f"a step: {one.work.samples:,.0f} pictures and {one.work.tokens:,.0f} tokens in {one.work.units} units",
        f"the costliest unit: {shape} one caption of {text}, others of {job.text}",
        "",
        "memory of one GPU, GB (10^9 bytes)",
    ]
    lines += [f"  {name:<26}{size_ / 1e9:>9.2f}" for name, size_ in one.memory.parts.items() if size_]
    verdict = f"fits, {one.margin / 1e9:.1f} GB left" if one.margin >= 0 else f"{-one.margin / 1e9:.1f} GB TOO MUCH"
    lines += [
        f"  {'all':<26}{one.memory.total / 1e9:>9.2f}   {verdict}",
        f"  host, for saving           {one.memory.host / 1e9:>8.2f}",
        "",
        "FLOPs a step",
        f"  {'the model':<26}{one.flops / 1e15:>9.1f} PF",
        f"  {'executed':<26}{one.executed / 1e15:>9.1f} PF   {one.executed / one.flops:.2f}x",
        "",
        "sent by a GPU a step, GB",
        *(f"  {name:<32}{bytes_ / 1e9:>9.2f}" for name, bytes_ in one.time.sent.items() if bytes_),
        "",
        f"seconds a step, products at {job.rates.efficiency:.0%} of {job.rates.tflops:g} TFLOP/s",
        *(f"  {name:<26}{seconds:>9.2f}" for name, seconds in _seconds(one).items()),
        f"  {'all':<26}{one.time.total:>9.2f}   {one.images_per_s:,.0f} pictures/s, MFU {one.mfu:.1%}",
    ]
    return lines


def _seconds(one: Estimate) -> dict[str, float]:
    return {
        "products": one.time.products,
        "memory traffic": one.time.memory,
        "tensor parallel": one.time.tensor,
        "gradients, not hidden": one.time.gradients,
        "parameters, not hidden": one.time.parameters,
    }


def layout(choice: Choice) -> str:
    """A choice in a few words."""
    recompute = choice.recompute
    redo = ", ".join(recompute.parts) or "nothing"
    if recompute.parts and recompute.every > 1:
        redo += f" of every {recompute.every}th block"
    spread = f"tp {choice.tp}{' with sp' if choice.sp else ''}"
    return f"{spread}, {choice.samples} a unit, recompute {redo}"


def table(fitting: list[Estimate], refused: list[Refused]) -> list[str]:
    """The layouts that fit, fastest first, and those that do not do."""
    lines = [f"{'s/step':>8} {'MFU':>6} {'left GB':>8}  layout (the same pictures a step)"]
    lines += [
        f"{one.time.total:>8.2f} {one.mfu:>6.1%} {one.margin / 1e9:>8.1f}  {layout(one.choice)}, {one.work.units} units"
        + ", TIGHT" * one.tight
        for one in fitting
    ]
    if not fitting:
        lines.append("  none fits")
    return lines + ["", "refused"] + [f"  {_kind(one.choice)}: {one.reason}" for one in refused]


def _kind(choice: Choice) -> str:
    redo = ", ".join(choice.recompute.parts) or "nothing"
    return f"tp {choice.tp}{' with sp' if choice.sp else ''}, recompute {redo}"


def as_json(one: Estimate) -> dict[str, Any]:
    """The estimate as plain values: bytes, FLOPs and seconds."""
    choice = one.choice
    return {
        "tp": choice.tp,
        "sp": choice.sp,
        "dp": one.dp,
        "recompute": choice.recompute.model_dump(mode="json"),
        "samples": choice.samples,
        "units": one.work.units,
        "memory": one.memory.parts,
        "memory_total": one.memory.total,
        "host": one.memory.host,
        "margin": one.margin,
        "fits": one.margin >= 0,
        "flops": one.flops,
        "executed_flops": one.executed,
        "sent": one.time.sent,
        "seconds": _seconds(one),
        "step_s": one.time.total,
        "images_per_s": one.images_per_s,
        "mfu": one.mfu,
    }


def _suggested(asked: bool, fitting: list[Estimate], refused: list[Refused]) -> dict[str, Any]:
    if not asked:
        return {}
    return {
        "layouts": [as_json(one) for one in fitting],
        "refused": [{"layout": _kind(one.choice), "reason": one.reason} for one in refused],
    }


if __name__ == "__main__":
    guarded(main)
