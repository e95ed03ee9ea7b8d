"""Units of random numbers: to measure the data plane, and to try a training without encoders or pictures."""

import time
import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from producer.api.bucket import parse
from producer.api.protocol import Welcome
from producer.api.unit import Encoded, Header, Latent, UnitId, pack
from producer.journal import Line, first_line, in_force


class SyntheticJob(BaseModel, frozen=True, strict=True, extra="forbid"):
    """The sizes of what is made."""

    kind: Literal["synthetic"] = "synthetic"
    units: int = Field(default=4, ge=1)  # a step
    validation_units: int = Field(default=1, ge=0)
    samples: int = Field(default=4, ge=1)  # a unit
    bucket: str = "256x256"
    channels: int = Field(default=16, ge=1)  # of the latent
    tokens: int = Field(default=64, ge=1)  # of a caption
    width: int = Field(default=64, ge=1)  # of a token's embedding
    seconds: float = Field(default=0.0, ge=0)  # that making one unit takes


class SyntheticMaker:
    """Makes the units of a plan that has no samples; a unit's numbers follow from its id."""

    def __init__(self, job: SyntheticJob) -> None:
        self._job = job
        self._offer = Welcome(f"synthetic-{job.units}", job.units, job.validation_units, "random")
        self._lines = [first_line(self._offer)]

    @property
    def offer(self) -> Welcome:
        """What the plan is."""
        return self._offer

    def __call__(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
        """The unit, with nothing left out."""
        time.sleep(self._job.seconds)
        line = in_force(self._lines, unit.step) if unit.stream == "train" else self._lines[0]
        name = f"{unit} of entry {line.number}" if line.number else str(unit)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        count = 1 if unit.stream == "empty" else self._job.samples
        samples = [self._sample(unit, name, index, rng) for index in range(count)]
        return pack(Header(line.id, unit, self._offer.encoder), samples), 0

    def narrow(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
        """As any other: it has no samples that could be at fault."""
        return self(unit)

    def expect(self, units: Sequence[UnitId]) -> None:
        """There is nothing to begin ahead."""

    def adopt(self, line: Line) -> None:
        """Other numbers and names from its step on."""
        self._lines = [*self._lines, line]

    def numbers(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}

    def close(self) -> None:
        """Nothing is kept."""

    def _sample(self, unit: UnitId, name: str, index: int, rng: np.random.Generator) -> Encoded:
        job, empty = self._job, unit.stream == "empty"
        height, width = (0, 0) if empty else parse(job.bucket)
        shape = (job.channels, height // 8, width // 8)
        mean, logvar = (rng.standard_normal(shape, np.float32).astype(np.float16) for _ in range(2))
        text = rng.standard_normal((job.tokens, job.width), np.float32)
        return Encoded(
            key="" if empty else f"{name}/{index}",
            source="synthetic",
            shard="",
            task="t2i",
            split="raw",
            caption="" if empty else f"sample {index} of {name}",
            latent=Latent(height, width, mean, logvar),
            text=(text.view(np.uint32) >> 16).astype(np.uint16),
        )
