"""Near duplicates: one picture encoded again, resized a little, or slightly recoloured."""

import cv2
import numpy as np
from pydantic import BaseModel, Field
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from producer.operator.judgement import Clusters, Facts

# Pairs compared at a time: 8 MB a hash.
_PAIRS = 1 << 20


class NearDuplicateConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    # Re-encoding at JPEG quality 40 and resizing by 10 % move either hash by 0 to 4 bits on photographs; different
    # photographs are 20 and more apart (the hashes of random pictures differ by 32 of 64 on average).
    radius: int = Field(default=6, ge=0, le=64)  # bits; pairs up to here, in both hashes, are one picture


class NearDuplicate:
    """Score: bits, 0 to 64, from the closest other sample, where the distance of a pair is the larger of its distances
    in two perceptual hashes: both must agree. Higher means more unlike the rest. Pairs up to `radius` are joined to
    clusters; of each the largest picture is kept, among equals the smallest key.

    Exact over all pairs, so quadratic: meant for up to 100,000 samples (20 s of one core), in 100 MB. Mirrored and
    cropped copies are not found.
    """

    name = "near_duplicate"
    version = 1

    def __init__(self, config: NearDuplicateConfig) -> None:
        self._radius = config.radius

    def cluster(self, facts: Facts) -> Clusters:
        closest, group = compare(facts.phash, facts.dhash, self._radius)
        best: dict[int, int] = {}
        for row in sorted(range(len(group)), key=lambda row: (-facts.pixels[row], facts.key[row])):
            best.setdefault(int(group[row]), row)
        kept = np.asarray([best[int(number)] for number in group], np.int64)
        reason = [f"looks like {facts.key[row]}" for row in kept]
        return Clusters(kept, closest, reason)


def compare(phash: np.ndarray, dhash: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Of uint64 [n] hashes: the distance [n] to the closest other, NaN when alone, and a group number [n] that samples
    share which are linked by pairs within `radius`.
    """
    number = len(phash)
    closest = np.full(number, np.inf)
    group = np.arange(number)
    height = max(1, _PAIRS // max(1, number))
    for first in range(0, number, height):
        block = slice(first, first + height)
        # Only the upper triangle: the distance is symmetric.
        apart = np.maximum(
            np.bitwise_count(phash[block, None] ^ phash[None, first:]),
            np.bitwise_count(dhash[block, None] ^ dhash[None, first:]),
        )
        itself = np.arange(len(apart))
        apart[itself, itself] = 255
        closest[block] = np.minimum(closest[block], apart.min(axis=1))
        closest[first:] = np.minimum(closest[first:], apart.min(axis=0))
        near, other = np.nonzero(apart <= radius)
        if len(near):
            # Block by block, so that a crowd of equal pictures costs no more memory than one block of pairs.
            links = coo_array((np.ones(len(near), bool), (group[first + near], group[first + other])), (number, number))
            group = connected_components(links, directed=False)[1][group]
    return np.where(closest > 64, np.nan, closest), group


def hash_pixels(pixels: np.ndarray) -> tuple[int, int]:
    """The two 64-bit perceptual hashes of RGB uint8 [y, x, 3].

    The first (pHash) is which of the 8 x 8 lowest frequencies of a 32 x 32 grey picture lie above their median; the
    second (dHash) is where an 8 x 9 grey picture gets brighter from left to right.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    low = cv2.dct(cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32))[:8, :8]
    # The mean brightness is no shape, and would shift the median.
    above = low > np.median(low.ravel()[1:])
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    brighter = small[:, 1:] > small[:, :-1]
    return _bits(above), _bits(brighter)


def _bits(flags: np.ndarray) -> int:
    return int.from_bytes(np.packbits(flags.ravel()).tobytes(), "big")
