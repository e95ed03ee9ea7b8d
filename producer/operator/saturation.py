"""Saturation: pictures with unnaturally strong colours."""

from typing import ClassVar

import cv2
import numpy as np
from pydantic import Field

from producer.operator.judgement import OptIn, Picture
from producer.operator.measured import Measured

_LIT = 96  # of 255, the largest channel: darker pixels have a strong but invisible saturation
_FULL = 0.05  # of the largest channel, what the smallest may be in a fully saturated pixel
_LEAST = np.floor(np.arange(256) * _FULL).astype(np.uint8)


class SaturationConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 2
    # Photographs of flowers and of red cups have up to 0.13: in nature, light of every colour comes back from anything.
    max: float = Field(default=0.25, ge=0, le=1)

    def operator(self) -> "Saturation":
        return Saturation(most=self.max)


class Saturation(Measured):
    """Score: share, 0 to 1, of pixels that are lit (largest channel 96 of 255 or more) and fully saturated (smallest
    channel at most 5 % of the largest, which is HSV's S of 0.95), at SIDE pixels of the longest side at most. Higher
    means stronger colours. Kept up to `max`.
    """

    name = "saturation"

    def measure(self, picture: Picture) -> float:
        red, green, blue = cv2.split(picture.pixels)
        largest, smallest = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
        full = (largest >= _LIT) & (smallest <= _LEAST[largest])
        return float(np.count_nonzero(full)) / full.size
