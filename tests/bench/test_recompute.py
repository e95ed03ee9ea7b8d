"""What each kind of recompute costs in time and saves in memory against none, in turns; rows of runs/bench/train.json.

The numbers beside them are of a block far inside a deep model: what it keeps, and what it executes.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from model.config import RecomputeConfig
from model.count import executed_flops, training_flops
from tests.bench.recompute_case import CONFIG, KINDS, NONE, PEER, PROMPTS, SIDE, steps
from tests.bench.report import record

TURNS = 5


def seconds(step: Callable[[], None]) -> float:
    """Of this process on a CPU: what else runs on the machine is not counted."""
    start = time.process_time()
    step()
    return time.process_time() - start


def memory() -> dict[str, int]:
    """Peak memory of a step of each kind, each in a process of its own."""
    root = Path(__file__).parents[2]
    line, env = [sys.executable, "tests/bench/recompute_case.py"], os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(line, cwd=root, env=env, capture_output=True, text=True, timeout=1500, check=True)
    lines = (line.split(" ", 1) for line in done.stdout.splitlines())
    return {kind: int(size) for size, kind in lines}


def executed(recompute: RecomputeConfig) -> float:
    """How many times the FLOPs of none."""
    every = [(SIDE**2, text) for text in PROMPTS]
    return sum(executed_flops(CONFIG, recompute, *sizes) for sizes in every) / sum(
        training_flops(CONFIG, *sizes) for sizes in every
    )


def test_every_kind_against_none() -> None:
    torch.set_num_threads(1)  # idle threads would be counted
    named = {kind: steps(kind) for kind in (NONE, *KINDS, PEER)}
    for step in named.values():
        step()  # the first of each pays for what it allocates
    taken: dict[str, list[float]] = {kind: [] for kind in named}
    for turn in range(TURNS):
        order = list(named)[turn % len(named) :] + list(named)[: turn % len(named)]
        for kind in order:
            taken[kind].append(seconds(named[kind]))
    time_of = {kind: statistics.median(values) for kind, values in taken.items()}
    held = memory()
    print(f"\n{'':34} {'s':>6} {'of none':>8} {'executed':>9} {'MiB':>6} {'less':>6}")
    for kind in named:
        flops = executed(KINDS[kind][0]) if kind in KINDS else 1.0 if kind == NONE else executed(KINDS["block"][0])
        print(
            f"{kind:34} {time_of[kind]:6.2f} {time_of[kind] / time_of[NONE]:7.2f}x {flops:8.2f}x "
            f"{held[kind] / 2**20:6.0f} {held[NONE] / held[kind]:5.2f}x"
        )
    rows = {}
    for kind, (_, less, longer) in KINDS.items():
        rows[f"recompute {kind}, memory"] = row(held[kind], held[NONE], less, "bytes")
        rows[f"recompute {kind}, time"] = row(time_of[kind], time_of[NONE], 1 / longer, "s")
    rows["recompute block against torch's checkpoint, time"] = row(time_of["block"], time_of[PEER], 0.95, "s")
    rows["recompute block against torch's checkpoint, memory"] = row(held["block"], held[PEER], 0.95, "bytes")
    record("train.json", rows)


def row(ours: float, peer: float, target: float, unit: str) -> dict[str, object]:
    return {"ours": ours, "peer": peer, "ratio": peer / ours, "target": target, "unit": unit}
