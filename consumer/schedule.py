"""The learning rate over the steps: a pure function of the step, so a resumed run needs no state of it."""

import math
from typing import Literal

from pydantic import BaseModel, Field, model_validator


class ScheduleConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """Warm-up from zero, then constant, or falling to `min_ratio` of the peak."""

    kind: Literal["constant", "cosine", "wsd"] = "constant"  # wsd: warm-up, stable, decay
    warmup_steps: int = Field(default=0, ge=0)
    total_steps: int = Field(default=0, ge=0)  # where cosine and wsd have reached the end; constant has none
    decay_steps: int = Field(default=0, ge=0)  # of the total, the last ones, in which wsd falls
    min_ratio: float = Field(default=0.0, ge=0, le=1)  # of the peak, at the end

    @model_validator(mode="after")
    def _fits(self) -> "ScheduleConfig":
        if self.kind != "constant" and self.total_steps <= self.warmup_steps + self.decay_steps:
            raise ValueError(
                f"schedule.total_steps: {self.total_steps} must exceed warmup_steps {self.warmup_steps} + "
                f"decay_steps {self.decay_steps} where kind is {self.kind}"
            )
        if (self.kind == "wsd") != (self.decay_steps > 0):
            raise ValueError(
                f"schedule.decay_steps: {self.decay_steps} with kind {self.kind}; wsd needs some, others have none"
            )
        return self


def rate(config: ScheduleConfig, step: int) -> float:
    """The share of the peak learning rate that the step with this number, from 0, is taken with."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return 1.0
    start = config.warmup_steps if config.kind == "cosine" else config.total_steps - config.decay_steps
    done = min(1.0, max(0.0, (step - start) / (config.total_steps - start)))
    # The form of wsd's decay: Hägele et al., arXiv 2405.18392 section 4.
    left = (1 + math.cos(math.pi * done)) / 2 if config.kind == "cosine" else 1 - math.sqrt(done)
    return config.min_ratio + (1 - config.min_ratio) * left
