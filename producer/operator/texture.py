"""Texture: pictures as complex as noise."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from producer.operator.judgement import OptIn, Picture
from producer.operator.measured import Measured


class TextureConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 2
    # Photographs of grass have 0.31, of all else less; of a picture that is 70 % noise, 0.65 and more.
    max: float = Field(default=0.5, ge=0, le=2)

    def operator(self) -> "Texture":
        return Texture(most=self.max)


class Texture(Measured):
    """Score: share of luma's variance that neighbouring pixels do not have in common, one minus their correlation, at
    SIDE pixels of the longest side at most: 0 for the smoothest, 1 for white noise, 2 for a chequerboard. Higher means
    more like noise. Kept up to `max`.
    """

    name = "texture"

    def measure(self, picture: Picture) -> float:
        grey = picture.grey.astype(np.float32)
        variance = float(grey.var())
        if variance < 1e-6 or min(grey.shape) < 2:
            return 0.0
        down, across = grey[1:] - grey[:-1], grey[:, 1:] - grey[:, :-1]
        apart = [float(np.vdot(one, one)) / one.size for one in (down, across)]
        return sum(apart) / 4 / variance
