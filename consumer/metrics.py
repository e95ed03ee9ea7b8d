"""What a training step reports, and the JSONL file of reports; more listeners are in sink/.

Only rank 0 writes. A resumed run drops the lines of steps that it trains again, so the file is one unbroken series.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """Some of a step's samples: their mean loss, and how many they are."""

    loss: float
    samples: int


@dataclass(frozen=True)
class StepReport:
    """One optimizer step over all ranks. Losses are exact: fp32 losses of samples, summed in fp64."""

    step: int  # steps done, this one included
    loss: float  # mean over the step's samples
    rate: float  # learning rate
    gradient_norm: float
    applied: bool
    samples: int
    tokens: int
    flops: float  # the model's, forward and backward, as counted by model/count.py
    seconds: float
    wait_s: float  # of them waiting for data, the slowest rank's
    mfu: float | None = None  # share of the devices' peak FLOP/s; None where train.peak_tflops is not given
    peak_memory: int = 0  # bytes, the largest of any rank so far: the allocator's on CUDA, the process's elsewhere
    loss_by_level: dict[str, Part] = field(default_factory=dict)  # by bins of sigma, "0.0-0.1" ... "0.9-1.0"
    loss_by_bucket: dict[str, Part] = field(default_factory=dict)  # by HEIGHTxWIDTH
    split: dict[str, float] = field(default_factory=dict)  # seconds of rank 0 by phase, of the step before: see Phases
    skipped: str = ""  # why the update was not applied
    executed: float = 0.0  # FLOPs with what is computed again: recompute, replays
    hfu: float | None = None  # "hardware utilisation", mfu of what is executed
    plan: str = ""  # by which its units were made
    entry: int = 0  # of the producers' recipe journal

    @property
    def images_per_s(self) -> float:
        return self.samples / self.seconds

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def flops_per_s(self) -> float:
        return self.flops / self.seconds

    @property
    def wait_share(self) -> float:
        """The share of the step that the slowest rank waited for data."""
        return self.wait_s / self.seconds


@dataclass(frozen=True)
class ValidationReport:
    """The validation loss at fixed noise and timesteps after `step` steps."""

    step: int
    loss: float
    samples: int
    seconds: float
    loss_by_level: dict[str, Part] = field(default_factory=dict)


@dataclass(frozen=True)
class PicturesReport:
    """A sheet of pictures drawn with the averaged weights after `step` steps."""

    step: int
    path: str  # of a PNG
    captions: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class CheckpointReport:
    """How a save that began after `step` steps ended; rank 0's numbers."""

    step: int
    published: bool
    why: str  # it was not published
    seconds: float  # from its start to its end, beside training
    stall_s: float  # of them training waited
    nbytes: int  # of rank 0's file


Report = StepReport | ValidationReport | PicturesReport | CheckpointReport

# How each kind of report is called in the files.
_KINDS = {
    StepReport: "step",
    ValidationReport: "validation",
    PicturesReport: "pictures",
    CheckpointReport: "checkpoint",
}


class Sink(Protocol):
    """Whoever listens to reports."""

    def __call__(self, report: Report) -> None:
        """Take one report."""

    def close(self) -> None:
        """No more will come."""


class JsonLines:
    """One JSON object a line; `kind` is "step", "validation", "pictures" or "checkpoint"."""

    def __init__(self, path: Path, resumed: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp")
        with aside.open("w") as kept:
            kept.writelines(line for line, said in _whole(path) if said["step"] <= resumed and resumed)
        os.replace(aside, path)
        self.file = path.open("a")

    def __call__(self, report: Report) -> None:
        self.file.write(
            json.dumps({"kind": _KINDS[type(report)], "time": round(time.time(), 3), **asdict(report)}) + "\n"
        )
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last one cut off by a kill is left out."""
    return [said for _, said in _whole(path)]


def _whole(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each whole line, as it is and as it reads. Files of long runs are large: one at a time."""
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            try:
                yield line.rstrip("\n") + "\n", json.loads(line)
            except json.JSONDecodeError:
                log.warning("%s: a line was cut off by an earlier end: %.40r", path, line)


def tell(sinks: Sequence[Sink], report: Report) -> None:
    """Give a report to every sink."""
    for sink in sinks:
        sink(report)
