"""Resolution buckets: the picture sizes a model trains on, and which of them a picture goes to."""

import math
from typing import NamedTuple

# Pixels a side must be a multiple of: VAE stride 8 times patch 2.
MULTIPLE = 16

# The report's aspect ratios, width:height (arXiv 2508.02324 section 3.2, stage S1).
ASPECTS = ("1:1", "2:3", "3:2", "3:4", "4:3", "9:16", "16:9", "1:3", "3:1")

# Sizes the released model was tuned for (its README); elsewhere sizes follow from the area.
_OFFICIAL = {
    (1328, "1:1"): (1328, 1328),
    (1328, "16:9"): (1664, 928),
    (1328, "9:16"): (928, 1664),
    (1328, "4:3"): (1472, 1104),
    (1328, "3:4"): (1104, 1472),
    (1328, "3:2"): (1584, 1056),
    (1328, "2:3"): (1056, 1584),
}


class Bucket(NamedTuple):
    """One training size in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def tokens(self) -> int:
        """Image tokens of one picture of this size."""
        return (self.height // MULTIPLE) * (self.width // MULTIPLE)


def parse(name: str) -> Bucket:
    """The bucket written as `HEIGHTxWIDTH`."""
    height, _, width = name.partition("x")
    return Bucket(int(height), int(width))


def bucket(resolution: int, aspect: str) -> Bucket:
    """The bucket of about `resolution` squared pixels with `aspect` (width:height), sides multiples of 16.

    >>> bucket(256, "2:3")
    Bucket(height=320, width=208)
    """
    if (resolution, aspect) in _OFFICIAL:
        width, height = _OFFICIAL[resolution, aspect]
        return Bucket(height, width)
    across, _, down = aspect.partition(":")
    ratio = int(across) / int(down)
    width, height = (
        max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE)
        for side in (resolution * math.sqrt(ratio), resolution / math.sqrt(ratio))
    )
    return Bucket(height, width)


def nearest(height: int, width: int, buckets: tuple[Bucket, ...]) -> Bucket:
    """The bucket whose aspect is closest to a picture of `height` x `width`, on a log scale; ties go to the first."""
    shape = math.log(width / height)
    return min(buckets, key=lambda b: abs(math.log(b.width / b.height) - shape))
