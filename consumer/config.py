"""Settings of training's components whose files load torch: apart from them, so that commands that train nothing read
settings without it.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, model_validator

# A trace of a step of the released model is some tens of MB, compressed.
_MOST = 32


class AuditConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    every: int = Field(default=0, ge=0)  # steps between audits of weights, moments and average; 1: each; 0: none
    # Steps between those whose gradients are computed twice; one costs a step's forward and backward, so 100 costs 1 %.
    replay_every: int = Field(default=0, ge=0)  # 0: none


class CheckpointConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    path: Path  # folder of the checkpoints
    every: int = Field(default=1000, gt=0)  # steps between saves
    keep: int = Field(default=3, ge=1)  # newest ones that stay; with 1 a damaged one has none before it
    keep_every: int = Field(default=0, ge=0)  # the first at or after each multiple stays for ever; 0: none does
    max_age_h: float = Field(default=0, ge=0)  # hours before the newest from which one goes even if in `keep`; 0: never
    retry_s: float = Field(default=30, gt=0)  # from a failed save to the next try
    give_up_s: float = Field(default=3600, ge=0)  # of failing, after which training ends; 0: at the first failure
    write_s: float = Field(default=1800, gt=0)  # a rank that writes longer has failed


class EmaConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """average <- decay * average + (1 - decay) * weights, after every applied step."""

    decay: float = Field(default=0.9999, ge=0, lt=1)
    start: int = Field(default=0, ge=0)  # steps whose weights are taken as they are, so that the first do not linger


class PicturesConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """Each picture has the size of its held-out sample's bucket."""

    every: int = Field(default=0, ge=0)  # training steps between sheets; 0: none are drawn
    count: int = Field(default=8, ge=1)  # pictures a sheet
    steps: int = Field(default=20, ge=1)  # of the sampler
    guidance: float = Field(default=4.0, ge=0)  # away from the empty prompt; at 1 or less there is none
    batch: int = Field(default=4, ge=1)  # pictures that a model-parallel group samples together


class TrainConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    steps: int = Field(gt=0)  # optimizer steps in all
    start_from: Path | None = None  # folder of released weights, for a run without checkpoints of its own
    other_plan: bool = False  # may a checkpoint go on with data of another plan than made its steps?
    metrics: Path  # folder of train.jsonl and tensorboard/
    validate_every: int = Field(default=0, ge=0)  # steps between validations; 0: before the first and after the last
    peak_tflops: float = Field(default=0.0, ge=0)  # of one device, dense, for MFU; an H100 or H200 has 989 in bf16
    grace_s: float = Field(default=8.0, gt=0)  # from a signal to the forced end


class PreflightConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """How long the checks before the first step may take, and what they tolerate."""

    collective_s: float = Field(default=30.0, gt=0)  # for one number through a group; NCCL also connects in it
    clock_s: float = Field(default=5.0, gt=0)  # the most that clocks may differ
    room_bytes: int = Field(default=256 << 20, ge=0)  # free in folders of logs and metrics


class ProfileConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """Steps are numbered as in the reports, from 1. A profiled step waits for the device; the others do not."""

    steps: tuple[int, ...] = ()  # each one a trace; none: nothing is profiled
    ranks: tuple[int, ...] = (0,)
    shapes: bool = False  # keep the operators' shapes
    memory: bool = False  # keep allocations
    limit_mb: float = Field(default=500.0, gt=0)  # of all traces of a rank; past it no further ones are made

    @model_validator(mode="after")
    def _few(self) -> "ProfileConfig":
        if len(self.steps) > _MOST:
            raise ValueError(f"profile.steps: {len(self.steps)} steps; choose at most {_MOST}, each is a trace")
        low = [step for step in self.steps if step < 1]
        if low or any(rank < 0 for rank in self.ranks):
            raise ValueError("profile.steps, profile.ranks: steps are numbered from 1, ranks from 0")
        return self


class WandbConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """The key is wandb's own affair (`wandb login` or its environment): settings are kept in checkpoints."""

    project: str = ""  # none: nothing is sent anywhere
    entity: str | None = None  # team or user
    mode: Literal["online", "offline"] = "online"
    timeout_s: float = Field(default=30.0, gt=0)  # for the first contact
