"""Rotation: pictures that the camera stored turned or mirrored."""

from typing import ClassVar

from pydantic import Field

from producer.operator.judgement import OptIn, Picture
from producer.operator.measured import Measured

# By EXIF orientation (CIPA DC-008, tag 0x0112): how far it is turned, and 360 more if it is mirrored as well.
_TURNED = {1: 0, 2: 360, 3: 180, 4: 540, 5: 450, 6: 90, 7: 450, 8: 90}


class RotationConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 2
    # "significant rotation or flip", by EXIF (arXiv 2508.02324, stage S2). Pixels are turned upright before use all the
    # same, so a set of photographs by phones may allow 90 or 180.
    max: float = Field(default=0.0, ge=0, le=540)  # degrees

    def operator(self) -> "Rotation":
        return Rotation(most=self.max)


class Rotation(Measured):
    """Score: degrees, 0, 90 or 180, by which the stored pixels are turned from upright, either way, and 360 more where
    they are mirrored; by the EXIF tag alone, 0 without one. Higher means more is left to the tag. Kept up to `max`.
    """

    name = "rotation"

    def measure(self, picture: Picture) -> float:
        return _TURNED[picture.orientation]
