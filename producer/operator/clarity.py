"""Clarity: pictures that are blurred or out of focus."""

import math
from typing import ClassVar

import cv2
from pydantic import Field

from producer.operator.judgement import OptIn, Picture
from producer.operator.measured import Measured


class ClarityConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 2
    # Photographs score 3.7 to 9, some through a microscope or of an eye's back 1 to 3; blurred by 3 pixels all are
    # below 2.2. The report's own examples reach from 2.4 to 10.
    min: float = Field(default=2.3)  # ln of squared levels

    def operator(self) -> "Clarity":
        return Clarity(least=self.min)


class Clarity(Measured):
    """Score: natural logarithm of the variance of the Laplacian (Pech-Pacheco 2000) of luma in levels of 255, at SIDE
    pixels of the longest side at most; from -5, which is a single colour, to about 11, noise. Higher means sharper, but
    noisier too. Kept from `min` on. The side is fixed, since the variance falls where a picture is enlarged.
    """

    name = "clarity"

    def measure(self, picture: Picture) -> float:
        _, deviation = cv2.meanStdDev(cv2.Laplacian(picture.grey, cv2.CV_16S))
        return math.log(float(deviation[0, 0]) ** 2 + math.exp(-5))
