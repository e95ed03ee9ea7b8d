"""Forward and backward of our MMDiT against diffusers' module: same weights, same samples, same threads, in turns."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.mmdit import MMDiT
from tests.bench.mmdit_case import CASES, Case, ours, theirs
from tests.bench.report import record

TURNS = 7
PLAIN = "256p, equal prompts"


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def memory(case: str, who: str) -> int:
    """Peak memory in a process of its own."""
    line = [sys.executable, "tests/bench/mmdit_case.py", case, who]
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(line, cwd=root, env=env, capture_output=True, text=True, timeout=600, check=True)
    return int(done.stdout.splitlines()[-1])


def saved_by_last_text(case: Case, weights: dict[str, Tensor], other: float) -> dict[str, dict[str, object]]:
    """What it saves that the last block makes no text: our step with and without, in turns."""
    model, short = ours(case, weights)
    turns: list[tuple[float, float]] = []
    for _ in range(TURNS + 1):
        _make_last_text(model, True)
        long = seconds(short)
        _make_last_text(model, False)
        turns.append((long, seconds(short)))
    whole, cut = (statistics.median(side) for side in zip(*turns[1:], strict=True))
    print(f"\nlast block's text: {whole:.2f} s with it ({other / whole:.2f}x), {cut:.2f} s without, {whole / cut:.3f}x")
    said = {"ours": cut, "peer": whole, "ratio": whole / cut, "target": 1.0, "unit": "s"}
    return {"mmdit, the last block's text left out": said}


def _make_last_text(model: MMDiT, make: bool) -> None:
    model.blocks[-1].attn.last = not make


@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_against_diffusers(name: str) -> None:
    torch.set_num_threads(2)
    case = CASES[name]
    peer, their_step = theirs(case)
    _, our_step = ours(case, peer.state_dict())
    our_step(), their_step()  # the first of each pays for what it allocates
    turns = [(seconds(our_step), seconds(their_step)) for _ in range(TURNS)]
    mine, other = (statistics.median(side) for side in zip(*turns, strict=True))
    if name == PLAIN:
        record("model.json", saved_by_last_text(case, peer.state_dict(), other))
    held, their_held = memory(name, "ours"), memory(name, "diffusers")
    print(f"\n{name}: {mine:.2f} s, diffusers {other:.2f} s, {other / mine:.2f}x (least {case.target})")
    print(f"{name}: {held / 2**20:.0f} MiB, diffusers {their_held / 2**20:.0f} MiB, {their_held / held:.2f}x")
    record(
        "model.json",
        {
            f"mmdit {name}": {"ours": mine, "peer": other, "ratio": other / mine, "target": case.target, "unit": "s"},
            f"mmdit {name}, memory": {
                "ours": held,
                "peer": their_held,
                "ratio": their_held / held,
                "target": 1.0,
                "unit": "bytes",
            },
        },
    )
