"""The planner's peak against the measured growth of a process that builds a trainer and takes two steps."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.planner_case import CASES
from tests.bench.report import record

ROOT = Path(__file__).parents[2]
WITHIN = 0.10


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_near_the_measured_peak(name: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = CASES[name].world
    base = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    places = [{}] if world == 1 else [{"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(world)]
    job = {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    line = [sys.executable, "-W", "ignore", "tests/bench/planner_case.py", name]
    ranks = [
        subprocess.Popen(line, cwd=ROOT, env=base | place | (job if place else {}), stdout=subprocess.PIPE, text=True)
        for place in places
    ]
    said = [json.loads(rank.communicate(timeout=600)[0].splitlines()[-1]) for rank in ranks]
    planned, measured = sum(said[0]["parts"].values()), max(item["measured"] for item in said)
    off = planned / measured - 1
    print(f"\n{name}: planned {planned / 2**20:.0f} MiB, measured {measured / 2**20:.0f}, {off:+.1%}")
    # As all ratios, higher is better: how much of the allowed error is left unused.
    ratio = WITHIN / max(abs(off), 0.001)
    case = {"ours": planned, "peer": measured, "ratio": ratio, "target": 1.0, "unit": "bytes"}
    record("train.json", {f"planner, {name}": case})
    assert abs(off) <= WITHIN
