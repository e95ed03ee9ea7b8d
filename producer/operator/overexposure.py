"""Over-exposure: pictures that are mostly burnt out. The other half of the report's luma filter."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from producer.operator.judgement import OptIn, Picture
from producer.operator.measured import Measured

_WHITE = 250  # of 255: what JPEG makes of 255 beside an edge


class OverexposureConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 2
    # Photographs have up to 0.07. Slides, drawings and goods on white have much more and are wanted: a recipe of
    # photographs alone may go down to 0.2.
    max: float = Field(default=0.6, ge=0, le=1)

    def operator(self) -> "Overexposure":
        return Overexposure(most=self.max)


class Overexposure(Measured):
    """Score: share, 0 to 1, of pixels with a luma of 250 of 255 or more, at SIDE pixels of the longest side at most.
    Higher means more of the picture is white without shape. Kept up to `max`.
    """

    name = "overexposure"

    def measure(self, picture: Picture) -> float:
        return float(np.count_nonzero(picture.grey >= _WHITE)) / picture.grey.size
