"""What to do with a step's numbers: apply it, skip it, go back to a checkpoint, or stop.

NaN and infinity are never applied. A spike is a loss or gradient norm far above those of the steps before it: six
deviations over the mean of the last 128 applied steps (OLMo-core's rule), here in log space, where both are close to
normal, and with rejected steps kept out of the window: in it one NaN would make every comparison false until it leaves.

A verdict follows from the step's global numbers and the state alone, so every rank reaches the same one, and a resumed
run the same as one that was never killed.
"""

import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from consumer.endings import Cause

log = logging.getLogger(__name__)


class GuardConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """How many bad steps are borne, and what a loss spike is and does."""

    bad_limit: int = Field(default=8, ge=0)  # skipped steps among the last `window` that are borne; one more stops
    spikes: Literal["off", "skip", "roll back"] = "off"
    sigma: float = Field(default=6.0, gt=0)  # deviations above the mean, in log space
    window: int = Field(default=128, ge=2)  # applied steps that mean and deviation are of; no spike before it is full
    floor: float = Field(default=0.05, ge=0)  # least deviation, in log space: with 6 sigma a factor of 1.35
    rollbacks: int = Field(default=2, ge=0)  # times to go back before `window` steps past the spike; one more stops
    before: int = Field(default=0, ge=0)  # steps ahead of a spike that are left out with it after going back


@dataclass(frozen=True)
class Verdict:
    """What becomes of a step. `reason` is for people; `cause` is set when the run stops."""

    action: Literal["apply", "skip", "roll back", "stop"]
    reason: str = ""
    cause: Cause | None = None


APPLY = Verdict("apply")


class Guard:
    """Judges every step on every rank, with numbers that are the same on all of them."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.skipped = 0  # steps not applied since the run began
        self._losses: deque[float] = deque(maxlen=config.window)  # natural logarithms, of applied steps
        self._norms: deque[float] = deque(maxlen=config.window)
        self._bad: list[int] = []  # steps skipped for their numbers, among the last `window`
        self._left_out: list[int] = []  # steps to skip when they are reached again
        self._spike = -1  # the furthest step that was gone back from ...
        self._backs = 0  # ... and how often without getting well past it

    def judge(self, step: int, loss: float, norm: float) -> Verdict:
        """`step` counts from 0; `loss` is the mean over its samples, `norm` the gradients' before clipping."""
        if step in self._left_out:
            self.skipped += 1
            return Verdict("skip", f"step {step}: left out after going back")
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return self._skip(step, Cause.NUMBERS, f"step {step}: loss {loss}, gradient norm {norm}")
        spiked = "" if self.config.spikes == "off" else self._high("loss", self._losses, loss)
        spiked = spiked or ("" if self.config.spikes == "off" else self._high("gradient norm", self._norms, norm))
        if spiked and self.config.spikes == "skip":
            return self._skip(step, Cause.NO_PROGRESS, f"step {step}: {spiked}")
        if spiked:
            return self._back(step, f"step {step}: {spiked}")
        for window, value in ((self._losses, loss), (self._norms, norm)):
            if value > 0:  # a step of no samples has nothing to say
                window.append(math.log(value))
        return APPLY

    def went_back(self, saved: dict[str, Any]) -> None:
        """After loading the checkpoint that "roll back" asked for: `saved` is its state.

        What led here is kept, so the steps that spiked are left out when they are reached again.
        """
        left_out, spike, backs, skipped = self._left_out, self._spike, self._backs, self.skipped
        self.load(saved)
        self._left_out, self._spike, self._backs, self.skipped = left_out, spike, backs, skipped

    def state(self) -> dict[str, Any]:
        """All that later verdicts depend on, as JSON; it belongs in every checkpoint."""
        return {
            "losses": list(self._losses),
            "norms": list(self._norms),
            "bad": self._bad,
            "left_out": self._left_out,
            "spike": self._spike,
            "backs": self._backs,
            "skipped": self.skipped,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`; an empty one is a run's beginning."""
        self._losses = deque(state.get("losses", ()), maxlen=self.config.window)
        self._norms = deque(state.get("norms", ()), maxlen=self.config.window)
        self._bad, self._left_out = list(state.get("bad", ())), list(state.get("left_out", ()))
        self._spike, self._backs = state.get("spike", -1), state.get("backs", 0)
        self.skipped = state.get("skipped", 0)

    def _high(self, name: str, window: deque[float], value: float) -> str:
        """Why `value` is a spike, or ""."""
        if len(window) < self.config.window or value <= 0:
            return ""
        mean = math.fsum(window) / len(window)
        spread = math.sqrt(math.fsum((past - mean) ** 2 for past in window) / len(window))
        deviation = max(spread, self.config.floor)
        over = math.log(value) - mean
        if over <= self.config.sigma * deviation:
            return ""
        # Without a floor a window of equal values has no deviation to count in.
        times = f"{over / deviation:.1f} deviations" if deviation else "far"
        return f"{name} {value:.6g} is {times} above the last {len(window)} steps' {math.exp(mean):.6g}"

    def _skip(self, step: int, cause: Cause, why: str) -> Verdict:
        self.skipped += 1
        self._bad = [bad for bad in self._bad if bad > step - self.config.window] + [step]
        if len(self._bad) <= self.config.bad_limit:
            return Verdict("skip", why)
        count = f"{len(self._bad)} steps of the last {self.config.window} were skipped"
        why = f"{why}; {count}, guard.bad_limit bears {self.config.bad_limit}"
        if cause is Cause.NO_PROGRESS:
            why += f"; if the new level is meant, train {self.config.window} steps with guard.spikes=off"
        return Verdict("stop", why, cause)

    def _back(self, step: int, why: str) -> Verdict:
        if step > self._spike + self.config.window:
            self._backs, self._left_out = 0, []  # it got well past the last one
        self._backs += 1
        self._spike = max(self._spike, step)
        if self._backs > self.config.rollbacks:
            times = f"gone back {self._backs - 1} times, guard.rollbacks allows {self.config.rollbacks}"
            return Verdict("stop", f"{why}; {times}", Cause.NO_PROGRESS)
        self._left_out = sorted({*self._left_out, *range(max(step - self.config.before, 0), step + 1)})
        return Verdict("roll back", why)


def record_bad(
    folder: Path,
    rank: int,
    step: int,
    reason: str,
    units: Sequence[object],
    keys: Sequence[Sequence[str]],
    losses: Sequence[Sequence[float]],
) -> None:
    """Append a skipped step's samples and their losses, unit by unit, to `<folder>/bad-steps-rank-N.jsonl`.

    Each rank has a file of its own. A run that was killed writes a step again that it trains again. A file that cannot
    be written is logged and stops nothing.
    """
    shares = [
        {"unit": str(unit), "keys": list(names), "losses": [_number(loss) for loss in each]}
        for unit, names, each in zip(units, keys, losses, strict=True)
    ]
    said = {"step": step, "rank": rank, "reason": reason, "time": round(time.time(), 3), "units": shares}
    path = folder / f"bad-steps-rank-{rank}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(file, (json.dumps(said, allow_nan=False) + "\n").encode())
        finally:
            os.close(file)
    except OSError as error:
        log.error("%s: not written: %s; it would say %s", path, error, json.dumps(said))


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON knows no NaN
