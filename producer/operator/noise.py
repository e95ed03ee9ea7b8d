"""Noise: pictures whose quietest parts are not quiet."""

import math
from typing import ClassVar

import cv2
import numpy as np
from pydantic import Field

from producer.operator.judgement import OptIn, Picture
from producer.operator.measured import Measured

_MASK = np.asarray([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
_BLOCK = 16
_QUIET = 0.1  # share of blocks that are taken to show noise and nothing else


class NoiseConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 5
    # Photographs have up to 4, close views of grass 10: they have no quiet block. With noise of 25 levels added to each
    # channel, which luma averages to 16, all have 9 and more.
    max: float = Field(default=8.5, ge=0)  # levels of 255

    def operator(self) -> "Noise":
        return Noise(most=self.max)


class Noise(Measured):
    """Score: standard deviation of luma's noise in levels of 255, from 0 to about 150, in the middle of the picture at
    its own scale, SIDE x SIDE at most. Higher means noisier. Kept up to `max`.

    Immerkaer's estimate (Computer Vision and Image Understanding 64, 1996), a mask without response to ramps and edges
    along the axes, in blocks of 16 x 16, of which the quietest tenth counts.
    """

    name = "noise"

    def measure(self, picture: Picture) -> float:
        response = np.abs(cv2.filter2D(picture.native_grey, cv2.CV_32F, _MASK))
        height, width = (max(1, size // _BLOCK) for size in response.shape)
        means = cv2.resize(response[: height * _BLOCK, : width * _BLOCK], (width, height), interpolation=cv2.INTER_AREA)
        return math.sqrt(math.pi / 2) / 6 * float(np.quantile(means, _QUIET))
