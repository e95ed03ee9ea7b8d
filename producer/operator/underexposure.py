"""Under-exposure: pictures whose brightest parts are dark. Half of the report's luma filter."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from producer.operator.judgement import OptIn, Picture
from producer.operator.measured import Measured


class UnderexposureConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 2
    # Photographs reach 0.25 and more, at night and of deep space too; five stops less light leaves none above 0.2. The
    # mean would not tell a dark subject from a dark picture: galaxies on black have 0.07.
    min: float = Field(default=0.22, ge=0, le=1)

    def operator(self) -> "Underexposure":
        return Underexposure(least=self.min)


class Underexposure(Measured):
    """Score: the luma, 0 black to 1 white, that the brightest 2 % of pixels reach, at SIDE pixels of the longest side
    at most. Higher means brighter highlights. Kept from `min` on.
    """

    name = "underexposure"

    def measure(self, picture: Picture) -> float:
        below = np.cumsum(np.bincount(picture.grey.ravel(), minlength=256))
        return float(np.searchsorted(below, 0.98 * below[-1])) / 255
