"""The plain twin of the search for near duplicates: every pair compared, and clusters by merging sets."""

import numpy as np

from producer.neighbours import Hashes


def apart(hashes: Hashes) -> np.ndarray:
    """Bits [n, n] between any two pictures as they are or one of them mirrored, in the worse of both hashes."""

    def worse(phash: np.ndarray, dhash: np.ndarray) -> np.ndarray:
        return np.maximum(
            np.bitwise_count(hashes.phash[:, None] ^ phash), np.bitwise_count(hashes.dhash[:, None] ^ dhash)
        )

    mirrored = worse(hashes.phash_mirror, hashes.dhash_mirror)
    return np.minimum(worse(hashes.phash, hashes.dhash), np.minimum(mirrored, mirrored.T))


def closest(bits: np.ndarray) -> np.ndarray:
    """Of `apart`, bits [n] to the closest other; 65 for one alone."""
    others = bits.astype(np.int64)
    np.fill_diagonal(others, 65)
    return others.min(axis=1, initial=65)


def clusters(near: np.ndarray) -> list[set[int]]:
    """The set of each row of bool [n, n], after all that are linked were merged."""
    groups = [{row} for row in range(len(near))]
    for one, other in zip(*np.nonzero(near), strict=True):
        if groups[one] is not groups[other]:
            groups[one] |= groups[other]
            for row in groups[one]:
                groups[row] = groups[one]
    return groups


def representatives(near: np.ndarray, generation: list[int], order: list[int]) -> list[int]:
    """The row kept for each, one generation after the other: the first in `order` of those as old or older that are
    linked by nothing newer.
    """
    kept = list(range(len(near)))
    for row in kept:
        old = np.asarray([one <= generation[row] for one in generation], bool)
        group = clusters(near & old & old[:, None])[row]
        kept[row] = min(group, key=order.index)
    return kept
