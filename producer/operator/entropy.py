"""Entropy: pictures of large uniform areas."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from producer.operator.judgement import OptIn, Picture
from producer.operator.measured import Measured


class EntropyConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 2
    # Photographs have 3.8 to 7.8, with 95 % of the picture painted over at most 1.0. The report's lowest is 1.86.
    min: float = Field(default=2.0, ge=0, le=8)  # bits

    def operator(self) -> "Entropy":
        return Entropy(least=self.min)


class Entropy(Measured):
    """Score: Shannon entropy of luma's 256 levels, 0 to 8 bits, at SIDE pixels of the longest side at most. Higher
    means more different levels. Kept from `min` on.
    """

    name = "entropy"

    def measure(self, picture: Picture) -> float:
        counts = np.bincount(picture.grey.ravel(), minlength=256)
        share = counts[counts > 0] / picture.grey.size
        return max(0.0, -float((share * np.log2(share)).sum()))
