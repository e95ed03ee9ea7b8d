"""Faults that a rank meets at a chosen step and moment. As a program: `planted.py SCRIPT ARGUMENTS` runs a script so.

The environment's PLANTED names a JSON file {"ledger": folder, "faults": [Fault, ...]}. What a rank trains on is written
to the ledger, and so is each fault as it strikes.
"""

import ctypes
import hashlib
import importlib
import json
import os
import re
import runpy
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import psutil
import torch

# The moments, by the call that begins each.
MOMENTS = {
    "start": "consumer.saver:Saver.__init__",
    "data": "consumer.source.group:GroupSource.unit",
    "forward": "consumer.objective.flow:FlowObjective.loss",
    "backward": "torch:Tensor.backward",
    "gradients": "parallel.engine:Engine.gradients",
    "reduce": "parallel.engine:Engine.finish",
    "optimizer": "parallel.megatron:DistributedOptimizer.step_with_ready_grads",
    # Main parameters and moments are of this step, the model's parameters of the one before.
    "between": "parallel.megatron:DistributedOptimizer._copy_main_params_to_model_params",
    "average": "consumer.ema:Ema.update",
    "copy": "consumer.snapshot:Snapshot.take",
    "write": "os:fsync",
    "publish": "os:replace",
    "clear": "shutil:rmtree",
    "validation": "consumer.evaluate.validation:validation_loss",
}
# Of the file system's calls those count that a checkpoint makes.
FILED = {"write": r"/checkpoints/", "publish": r"/checkpoints/step-\d+$", "clear": r"/checkpoints/"}
PACKAGES = {"consumer", "launch", "model", "parallel", "producer"}
SEEN = "PLANTED"


@dataclass(frozen=True)
class Fault:
    """`act` on `rank` when `moment` begins at step `step` (the first, counted from 0) or later, once.

    It happens in the `start`th start of the job, counted from 0. A signal is sent `delay_s` after the moment began.
    """

    act: str  # a signal's name; "nan", "inf", "spike" or "flip" for what the call gives; an error's name
    moment: str
    step: int
    rank: int = 0
    start: int = 0
    delay_s: float = 0.0
    to: str = "rank"  # or launcher, or all: who gets the signal
    until: int | None = None  # strikes at every step from `step` to before this one


class Planted:
    """The faults of this rank and start."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.rank, self.start = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        faults = [Fault(**fault) for fault in said["faults"]]
        self.faults = [fault for fault in faults if (fault.rank, fault.start) == (self.rank, self.start)]
        self.ledger, self.step = Path(said["ledger"]), -1
        self.struck: set[tuple[Fault, int]] = set()

    def write(self, **line: object) -> None:
        """Add to the ledger; on its way to disk when this returns."""
        said = json.dumps({"rank": self.rank, "start": self.start} | line) + "\n"
        file = os.open(self.ledger / f"{self.rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, said.encode())
        os.close(file)

    def due(self, moment: str) -> list[Fault]:
        """The faults that strike now."""
        found = []
        for fault in self.faults:
            last = fault.until if fault.until is not None else sys.maxsize
            key = (fault, self.step if fault.until is not None else 0)
            if fault.moment == moment and fault.step <= self.step < last and key not in self.struck:
                self.struck.add(key)
                self.write(fault=asdict(fault), at=self.step)
                found.append(fault)
        return found

    def wrapped(self, moment: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call` with the faults of `moment`."""

        @wraps(call)
        def wrapping(*arguments: Any, **named: Any) -> Any:
            if moment in FILED and not re.search(FILED[moment], _path(arguments[-1])):
                return call(*arguments, **named)
            due = self.due(moment)
            for fault in due:
                _strike(fault)
            given = call(*arguments, **named)
            for fault in due:
                given = _spoilt(fault, arguments, given)
            return given

        return wrapping

    def plant(self) -> None:
        """Wrap what begins the moments, and what shows the step and its samples."""
        import launch.pretrain  # noqa: F401  so that every name that is to be replaced is there

        for moment, place in MOMENTS.items():
            replace(place, lambda call, moment=moment: self.wrapped(moment, call))
        replace("consumer.feed:Feed.take", self._stepping)
        replace("consumer.objective.flow:FlowObjective.batch", self._batching)

    def _stepping(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapping(feed: Any, step: int) -> Any:
            self.step = step
            return call(feed, step)

        return wrapping

    def _batching(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapping(objective: Any, samples: Any, step: int | str, *others: Any, **named: Any) -> Any:
            batch = call(objective, samples, step, *others, **named)
            if isinstance(step, int):
                digest = hashlib.sha256()
                for tensor in (batch.image, batch.text, batch.sigma, batch.target):
                    digest.update(tensor.detach().float().cpu().numpy().tobytes())
                self.write(step=step, keys=batch.keys, digest=digest.hexdigest())
            return batch

        return wrapping


def replace(place: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put a wrapped call in the place of `module:name`, wherever our modules hold it."""
    module, _, path = place.partition(":")
    holder: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        holder = getattr(holder, part)
    call = getattr(holder, name)
    wrapped = wrap(call)
    setattr(holder, name, wrapped)
    for other in list(sys.modules.values()):
        if getattr(other, "__name__", "").split(".")[0] in PACKAGES and vars(other).get(name) is call:
            setattr(other, name, wrapped)


def _path(said: object) -> str:
    """A path, or the path of an open file."""
    return os.readlink(f"/proc/self/fd/{said}") if isinstance(said, int) else str(said)


def _strike(fault: Fault) -> None:
    if fault.act.startswith("SIG"):
        number = signal.Signals[fault.act]
        if fault.to == "rank" and fault.delay_s:
            _later(number, fault.delay_s)
            return
        time.sleep(fault.delay_s)
        launcher = psutil.Process(os.getppid())
        for process in {"rank": [psutil.Process()], "launcher": [launcher], "all": launcher.children()}[fault.to]:
            process.send_signal(number)
    elif fault.act == "no memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB (planted)")
    elif fault.act == "no space":
        raise OSError(28, "No space left on device (planted)")
    elif fault.act == "bug":
        raise AssertionError("planted")
    elif fault.act == "hang":
        time.sleep(10_000)


def _spoilt(fault: Fault, arguments: tuple[Any, ...], given: Any) -> Any:
    """What the call gave, made wrong: a loss, or a gradient of the engine that is the first argument."""
    if fault.act == "flip":
        given[0].view(torch.int32)[len(given[0]) // 3] ^= 1  # the lowest bit of one gradient
    factor = {"nan": float("nan"), "inf": float("inf"), "spike": 1e4}.get(fault.act)
    if factor is None:
        return given
    if fault.moment == "forward":
        loss, each = given
        return loss * factor, each * factor
    assert fault.moment == "reduce"
    for parameter in arguments[0].module.parameters():
        if hasattr(parameter, "main_grad"):  # it is trained; this rank's optimizer reads its shard alone
            parameter.main_grad.mul_(factor)
    return given


class _Event(ctypes.Structure):
    """struct sigevent of <signal.h>, Linux; it is 64 bytes."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("number", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * 48),
    )


def _later(number: int, delay_s: float) -> None:
    """Have the kernel send this process a signal after `delay_s`, whatever runs then: no thread has to wake."""
    libc, timer = ctypes.CDLL(None, use_errno=True), ctypes.c_void_p()
    event = _Event(number=number, notify=0)
    whole = int(delay_s)
    when = (ctypes.c_long * 4)(0, 0, whole, int((delay_s - whole) * 1e9))
    if libc.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
        raise OSError(ctypes.get_errno(), "timer_create")
    if libc.timer_settime(timer, 0, ctypes.byref(when), None):
        raise OSError(ctypes.get_errno(), "timer_settime")


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    Planted(json.loads(Path(os.environ[SEEN]).read_text())).plant()
    runpy.run_path(sys.argv[0], run_name="__main__")
