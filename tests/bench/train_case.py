"""A training that measures itself: `train_case.py SCRIPT ARGUMENTS` runs a script with clocks around a loop's parts.

Rank 0 writes a line a step to the file that MEASURED names: seconds of the whole step, from one step's start to the
next's, seconds in each part, and every place where the host read a tensor back, which on a CUDA device waits for it.
"""

import json
import os
import runpy
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from tests.faults.planted import replace

# What a bare loop over the same module does too.
BARE = {
    "forward": ("consumer.objective.flow:FlowObjective.loss",),
    "backward": ("torch:Tensor.backward",),
    "optimizer": (
        "parallel.engine:Engine.zero_grad",
        "parallel.engine:Engine.finish",
        "parallel.engine:Engine.norm",
        "parallel.engine:Engine.apply",
    ),
}
# What only observes.
METRICS = {
    "stats": ("consumer.stats:Stats.start", "consumer.stats:Stats.add", "consumer.stats:Stats.read"),
    "reduced": ("consumer.stats:Stats.reduced",),
    "phases": (
        "consumer.phases:Phases.start",
        "consumer.phases:Phases.enter",
        "consumer.phases:Phases.end",
        "consumer.phases:Phases.seconds",
    ),
    "beats": ("consumer.watchdog:Watchdog.beat",),
    "sinks": ("consumer.loop:tell",),
    "flops": ("model.count:training_flops",),
}
OTHERS = {
    "batches": ("consumer.feed:Feed.ahead",),
    "average": ("consumer.ema:Ema.update",),
    "audit": tuple(f"consumer.audit:Audit.{name}" for name in ("sealed", "gathered", "computed", "found")),
}
# Where tensors are read that are the host's on any machine: torch's Adam counts its steps there, and the runs of a
# packed batch are counted where there is no device alone.
HOST = ("torch/optim/", "model/fused.py:of")
READS = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "nonzero")


class Clock:
    """Seconds in each part since the step began; a part inside another counts in both."""

    def __init__(self, out: Path) -> None:
        self.out, self.began = out, 0.0
        self.parts: dict[str, float] = defaultdict(float)
        self.reads: dict[str, int] = defaultdict(int)
        self.hosts = 0  # how deep in parts that work on the host by design

    def around(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            self.hosts += part == "batches"
            try:
                return call(*arguments, **named)
            finally:
                self.hosts -= part == "batches"
                self.parts[part] += time.perf_counter() - began

        return timed

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def reading(*arguments: Any, **named: Any) -> Any:
            frames = [f"{frame.filename}:{frame.name}" for frame in traceback.extract_stack()[:-1]]
            if not self.hosts and not any(part in frame for frame in frames for part in HOST):
                ours = [frame for frame in frames if "site-packages" not in frame]
                self.reads["/".join(Path(ours[-1]).parts[-2:])] += 1
            return call(*arguments, **named)

        return reading

    def stepping(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def take(feed: Any, step: int) -> Any:
            now = time.perf_counter()
            if self.began:
                said = {"step": step - 1, "seconds": now - self.began, "parts": self.parts, "reads": self.reads}
                with self.out.open("a") as file:
                    file.write(json.dumps(said) + "\n")
            self.parts.clear()
            self.reads.clear()
            self.began = time.perf_counter()
            return call(feed, step)

        return take


def measure(out: Path) -> None:
    """Put clocks around everything."""
    import launch.pretrain  # noqa: F401  so that every name that is to be replaced is there

    clock = Clock(out)
    for part, places in (BARE | METRICS | OTHERS).items():
        for place in places:
            replace(place, lambda call, part=part: clock.around(part, call))
    if "READS" in os.environ:  # looking for the places takes time itself
        for name in READS:
            setattr(torch.Tensor, name, clock.counted(getattr(torch.Tensor, name)))
    replace("consumer.feed:Feed.take", clock.stepping)


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    if os.environ.get("RANK", "0") == "0":
        measure(Path(os.environ["MEASURED"]))
    runpy.run_path(sys.argv[0], run_name="__main__")
