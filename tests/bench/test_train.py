"""What the training loop costs beside the work: the split of a step, overhead, metrics, waits for the device, scaling.

`make bench-train` prints it and keeps it in runs/bench/train.json. Times of the overhead are of one run's own clocks:
two runs on a shared machine differ by more than what is measured.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from consumer.metrics import lines
from tests.bench.report import record
from tests.bench.train_case import BARE, METRICS
from tests.faults.job import ROOT, TINY, Producers, write_encoder_facts

STEPS, WARM = 8, 2
OVERHEAD, MEASURING, AUDITING, WAITS = 0.03, 0.01, 0.01, 1
RUN_S = 600

# Some 200 GFLOP a step: seconds. The released model does a hundred times more for each token that is handed over.
MODEL = (
    "model.num_layers=6",
    "model.attention_head_dim=64",
    "model.axes_dims_rope=[16,24,24]",
    "recipe.resolutions=[256]",
    "optim.precision=fp32",
    "mesh.tp=1",
    f"train.steps={STEPS}",
    f"schedule.total_steps={STEPS}",
    "checkpoint.every=1000",
)
Steps = list[dict[str, Any]]

AUDITED = 100  # steps between audits of memory, at which their cost is held to the limit


def trained(
    folder: Path, ranks: int, audit: int = 0, **environment: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The measured steps, warm ones alone: the clocks' lines, and the loop's own reports."""
    folder.mkdir()
    write_encoder_facts(folder / "encoders")
    producers = Producers(folder, bucket="256x256", tokens=64)
    measured = folder / "measured.jsonl"
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MEASURED": str(measured)}
    script = ["tests/bench/train_case.py", "launch/pretrain.py", "launch/configs/smoke.toml", f"run.dir={folder}"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--log-dir", str(folder / "torchrun")]
    start = [*launcher, "--nproc-per-node", str(ranks), *script]
    try:
        done = subprocess.run(
            [*start, *TINY, *MODEL, f"audit.every={audit}", f"encoder.root={folder}/encoders", *producers.overrides()],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=RUN_S,
        )
    finally:
        producers.stop()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    steps = [json.loads(line) for line in measured.read_text().splitlines()][WARM:]
    reports = [line for line in lines(folder / "metrics" / "train.jsonl") if line["kind"] == "step"][WARM:]
    return steps, reports


def middle(values: list[float]) -> float:
    return float(statistics.median(values))


def shares(steps: list[dict[str, Any]], parts: set[str]) -> float:
    """The median over steps of the share of `parts` in a step."""
    return middle([sum(step["parts"].get(part, 0.0) for part in parts) / step["seconds"] for step in steps])


def case(ours: float, limit: float, unit: str) -> dict[str, object]:
    """`peer` is the limit; ratio is limit / ours: at least 1 passes."""
    return {"ours": ours, "peer": limit, "ratio": limit / max(ours, 1e-9), "target": 1.0, "unit": unit}


@pytest.mark.timeout(1800)
def test_the_loop_costs_little_beside_forward_backward_and_optimizer(tmp_path: Path) -> None:
    steps, reports = trained(tmp_path / "one", 1)
    two, two_reports = trained(tmp_path / "two", 2)
    for ranks, told in ((1, reports), (2, two_reports)):
        seconds = middle([report["seconds"] for report in told])
        phases = {
            name: middle([report["split"][name] for report in told if report["split"]]) for name in told[-1]["split"]
        }
        split = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in phases.items())
        print(f"\n{ranks} rank(s): step {1e3 * seconds:.0f} ms: {split}; waiting for producers ", end="")
        print(f"{1e3 * middle([report['wait_s'] for report in told]):.1f} ms")
        for name, value in phases.items():
            entry = {"ours": value, "peer": seconds, "ratio": seconds / max(value, 1e-9), "target": 1.0, "unit": "s"}
            record("train.json", {f"step split, {ranks} rank(s), {name} of the step": entry})
    bare = shares(steps, set(BARE))
    overhead = middle([step["seconds"] / sum(step["parts"][part] for part in BARE) - 1 for step in steps])
    measuring = shares(steps, set(METRICS))
    for part in steps[-1]["parts"]:
        print(f"  {part}: {100 * shares(steps, {part}):.3f} %")
    print(f"bare {100 * bare:.2f} % of a step; overhead {100 * overhead:.2f} % (at most {100 * OVERHEAD:.0f})")
    print(f"metrics {100 * measuring:.3f} % (at most {100 * MEASURING:.0f})")
    speedup = middle([step["seconds"] for step in steps]) / middle([step["seconds"] for step in two])
    print(f"1 -> 2 ranks on the same step: {speedup:.2f} times as fast, {os.cpu_count()} cores")
    # The peer is the ideal; at half of it two ranks are no faster than one.
    scaling = {"ours": speedup, "peer": 2.0, "ratio": speedup / 2.0, "target": 0.5, "unit": "times as fast"}
    record(
        "train.json",
        {
            "loop over bare forward, backward and optimizer": case(overhead, OVERHEAD, "share"),
            "metrics": case(measuring, MEASURING, "share of a step"),
            "scaling 1 to 2 ranks": scaling,
        },
    )
    assert overhead <= OVERHEAD and measuring <= MEASURING


@pytest.mark.timeout(900)
def test_a_step_waits_for_the_device_once_also_when_it_is_audited(tmp_path: Path) -> None:
    steps, _ = trained(tmp_path / "reads", 1, audit=1, READS="1")
    for step in steps:
        print(f"\nstep {step['step']}: {step['reads']}", end="")
    most = max(sum(step["reads"].values()) for step in steps)
    audit = shares(steps, {"audit"})
    print(f"\nan audit is {100 * audit:.2f} % of its step: {100 * audit / AUDITED:.3f} % at every {AUDITED}th")
    record(
        "train.json",
        {
            "waits for the device a step": case(most, WAITS, "tensors read back by the host"),
            f"audit at every {AUDITED}th step": case(audit / AUDITED, AUDITING, "share of a step"),
        },
    )
    assert most == WAITS, steps[-1]["reads"]
    assert audit / AUDITED <= AUDITING
