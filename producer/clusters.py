"""Clusters of alike samples from pairs of them, and which of a cluster is kept.

What an older generation of the index kept stays whatever comes later: a sample is only compared with those as old as
itself or older, even where a newer one makes two old clusters one.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

# Pairs held at most, 16 bytes each, before they are thinned out to those that join something.
_PAIRS = 1 << 22


class Age(NamedTuple):
    """What decides between alike samples, an array [n] each, rows sorted by key: older, then better ones are kept."""

    generation: np.ndarray  # int64: the first one that kept it; unseen ones are the newest
    pixels: np.ndarray  # int64
    clarity: np.ndarray  # float64, NaN where not measured

    def rank(self) -> np.ndarray:
        """A number for each row, the smallest for the one that is kept before all others: by generation, pixels,
        clarity, key.
        """
        clarity = np.where(np.isnan(self.clarity), -np.inf, self.clarity)
        order = np.lexsort((-clarity, -self.pixels, self.generation))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return rank


def representatives(pairs: Iterable[tuple[np.ndarray, np.ndarray]], age: Age) -> np.ndarray:
    """The row [n] kept for each row, given pairs of alike rows in blocks: its own where it is kept itself."""
    number = len(age.generation)
    one, other = np.zeros(0, np.int64), np.zeros(0, np.int64)
    held = [(one, other)]
    for block in pairs:
        held.append(block)
        if sum(len(one) for one, _ in held) > _PAIRS:
            held = [_thin(held, age.generation)]
    one, other = _thin(held, age.generation)
    newest = np.maximum(age.generation[one], age.generation[other])
    rank = age.rank()
    kept = np.arange(number)
    best = np.argsort(rank)
    for generation in np.unique(newest):
        link = newest <= generation
        cluster = _components(one[link], other[link], number)
        known = np.flatnonzero(age.generation <= generation)
        least = np.full(number, number)
        np.minimum.at(least, cluster[known], rank[known])
        ours = np.flatnonzero(age.generation == generation)
        kept[ours] = best[least[cluster[ours]]]
    return kept


def _thin(held: list[tuple[np.ndarray, np.ndarray]], generation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fewer pairs that join the same rows, among those of each age and older: at most one a row."""
    number = len(generation)
    one, other = (np.concatenate(side) for side in zip(*held, strict=True))
    packed = np.unique(np.minimum(one, other) * number + np.maximum(one, other))
    if not len(packed):
        return packed, packed
    one, other = np.divmod(packed, number)
    # Of the links that join two clusters the tree takes the oldest. Weights count from 1, zeros are no links.
    level = np.unique(generation, return_inverse=True)[1] + 1.0
    links = coo_array((np.maximum(level[one], level[other]), (one, other)), (number, number))
    tree = minimum_spanning_tree(links.tocsr()).tocoo()
    return tree.row.astype(np.int64), tree.col.astype(np.int64)


def _components(one: np.ndarray, other: np.ndarray, number: int) -> np.ndarray:
    links = coo_array((np.ones(len(one), bool), (one, other)), (number, number))
    return connected_components(links, directed=False)[1]
