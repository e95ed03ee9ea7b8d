"""Near duplicates: one picture encoded again, resized a little, slightly recoloured, or mirrored."""

from collections.abc import Iterator

import cv2
import numpy as np
from pydantic import BaseModel, Field

from producer.clusters import representatives
from producer.neighbours import near_pairs
from producer.operator.judgement import Clusters, Facts
from producer.scratch import pieces

# Levels of 255. In skies and shadows smaller steps are what compression leaves: with it, copies of all kinds that the
# tests try are within the radius in 99 of 100, without it in 98.
_STEP = np.float32(0.5)


class NearDuplicateConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    # Re-encoding at JPEG quality 40 and resizing by 10 % move either hash by 0 to 4 bits on photographs; different
    # photographs are 20 and more apart (the hashes of random pictures differ by 32 of 64 on average). The search takes
    # time that grows with (radius + 1)² keys and with how few bits each of them has.
    radius: int = Field(default=6, ge=0, le=12)  # bits; pairs up to here, in both hashes, are one picture


class NearDuplicate:
    """Score: bits, 0 to `radius`, from the closest other sample as it is or mirrored, where the distance of a pair is
    the larger of its distances in two perceptual hashes: both must agree. Higher means more unlike the rest; null where
    no other is within `radius`. Pairs are joined to clusters, and of each the oldest is kept, by the first generation
    that kept it, then the largest in pixels, then the clearest, then the one with the smallest key.

    Exact but for crowds: of more than 1024 pictures that agree in a seventh of either hash, or so, each is compared
    with some of them. Crops are not found.
    """

    name = "near_duplicate"
    version = 2

    def __init__(self, config: NearDuplicateConfig) -> None:
        self._radius = config.radius

    def cluster(self, facts: Facts) -> Clusters:
        space, number = facts.space, len(facts.age.generation)
        closest = space.filled(number, np.uint8, 255)

        def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for one, other, bits in near_pairs(facts.hashes, self._radius, space):
                np.minimum.at(closest, one, bits)
                np.minimum.at(closest, other, bits)
                yield one, other

        kept = representatives(pairs(), facts.age, space)
        score = space.empty(number, np.float64)
        for part in pieces(number):
            score[part] = np.where(closest[part] > self._radius, np.nan, closest[part])
        return Clusters(kept, score, "looks like")


def hash_pixels(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """The two 64-bit perceptual hashes of RGB uint8 [y, x, 3], and both of its mirror image.

    The first (pHash) is which of the 8 x 8 lowest frequencies of a 32 x 32 grey picture lie above their median; the
    second (dHash) is where an 8 x 9 grey picture gets brighter from left to right, by more than `_STEP`.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    low = cv2.dct(cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA))[:8, :8]
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    # Mirrored, every odd frequency across changes its sign.
    mirrored = low * np.resize(np.asarray([1, -1], np.float32), 8)
    return _above(low), _brighter(small), _above(mirrored), _brighter(small[:, ::-1])


def _above(low: np.ndarray) -> int:
    # The mean brightness is no shape, and would shift the median.
    return _bits(low > np.median(low.ravel()[1:]))


def _brighter(small: np.ndarray) -> int:
    return _bits(small[:, 1:] > small[:, :-1] + _STEP)


def _bits(flags: np.ndarray) -> int:
    return int.from_bytes(np.packbits(flags.ravel()).tobytes(), "big")
