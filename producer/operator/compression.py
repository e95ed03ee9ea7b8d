"""Compression: pictures with visible blocks of 8 x 8 pixels."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from producer.operator.judgement import OptIn, Picture
from producer.operator.measured import Measured

_BLOCK = 8
# Levels of 255: on a smooth picture steps below are not seen.
_SEEN = 1.0


class CompressionConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 5
    # JPEG of quality 10 has 0.52 and more, of quality 75 mostly below 0.2, and 0.48 on the smoothest pictures.
    max: float = Field(default=0.5, ge=0)

    def operator(self) -> "Compression":
        return Compression(most=self.max)


class Compression(Measured):
    """Score: how much larger steps of luma are across a grid of 8 pixels than those beside it, as a multiple of the
    mean step, along the axis where that is less; in the middle of the picture at its own scale, SIDE x SIDE at most.
    From 0, no grid, to about 4. Higher means more visible blocks. Kept up to `max`.

    The grid may lie anywhere: pictures are cropped after they were compressed. One that was resized since has none.
    """

    name = "compression"

    def measure(self, picture: Picture) -> float:
        grey = picture.native_grey
        if min(grey.shape) < 4 * _BLOCK:
            return 0.0
        across = np.subtract(grey[:, 1:], grey[:, :-1], dtype=np.int16)
        down = np.subtract(grey[1:], grey[:-1], dtype=np.int16)
        return min(_grid(np.abs(across).mean(axis=0)), _grid(np.abs(down).mean(axis=1)))


def _grid(steps: np.ndarray) -> float:
    """The score along one axis, of the mean step at each place."""
    beside = steps[1:-1] - (steps[:-2] + steps[2:]) / 2
    phases = np.asarray([beside[phase::_BLOCK].mean() for phase in range(_BLOCK)])
    return float((phases.max() - np.median(phases)) / (steps.mean() + _SEEN))
