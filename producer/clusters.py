"""Clusters of alike samples from pairs of them, and which of a cluster is kept.

What an older generation of the index kept stays whatever comes later: a sample is only compared with those as old as
itself or older, even where a newer one makes two old clusters one.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from producer.forest import Forest
from producer.ordering import Word, ordered, places, real, signed
from producer.scratch import MEMORY, Space, numbers, pieces

# Pairs held until they are joined, 16 bytes each; a block of them takes as much as so many beside.
_PAIRS = 1 << 20
_BLOCK = 16


class Age(NamedTuple):
    """What decides between alike samples, an array [n] each, rows sorted by key: older, then better ones are kept."""

    generation: np.ndarray  # int64: the first one that kept it; unseen ones are the newest
    pixels: np.ndarray  # int64
    clarity: np.ndarray  # float64, NaN where not measured

    def words(self) -> tuple[Word, ...]:
        """By which rows are in order, the one that is kept before all others first: generation, pixels, clarity; then
        it is the key.
        """
        return (
            lambda part: signed(self.generation[part]),
            lambda part: ~signed(self.pixels[part]),
            lambda part: ~real(self.clarity[part]),
        )


def representatives(pairs: Iterable[tuple[np.ndarray, np.ndarray]], age: Age, space: Space = MEMORY) -> np.ndarray:
    """The row [n] kept for each row, given pairs of alike rows in blocks: its own where it is kept itself.

    Arrays as long as the set lie in `space`, two and one for each generation that has pairs.
    """
    number = len(age.generation)
    order, rank = _ranked(age, space)
    # Nodes are ranks, so that a tree's root is the best of it. What joins a row of a generation to one as old or older
    # has no say before that generation.
    forests: dict[int, Forest] = {}
    for one, other in _blocks(pairs):
        newest = np.maximum(age.generation[one], age.generation[other])
        for generation in np.unique(newest).tolist():
            link = newest == generation
            if generation not in forests:
                forests[generation] = Forest(number, space)
            forests[generation].join(rank[one[link]], rank[other[link]])
    joined, first = Forest(number, space), 0
    kept = rank  # ranks are not asked for any more, and their room is used again
    for generation, rows in sorted(_sizes(age.generation).items()):
        if generation in forests:
            joined.add(forests.pop(generation))
        # Older ones come first in rank.
        for part in pieces(first + rows, first):
            kept[order[part]] = order[joined.roots(numbers(part))]
        first += rows
    return kept


def _ranked(age: Age, space: Space) -> tuple[np.ndarray, np.ndarray]:
    """The rows from the one that is kept before all others on, and each row's place there."""
    number = len(age.generation)
    rows = ordered(number, *age.words(), space=space)
    order, rank = space.empty(number, np.int64), space.empty(number, np.int64)
    for part in pieces(number):
        order[part] = places(rows, part)
        rank[order[part]] = numbers(part)
    return order, rank


def _blocks(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same pairs in blocks that are worth the effort."""
    held, number = list[tuple[np.ndarray, np.ndarray]](), 0
    for block in pairs:
        held.append(block)
        number += len(block[0]) + _BLOCK
        if number > _PAIRS:
            yield _concatenated(held)
            held, number = [], 0
    if held:
        yield _concatenated(held)


def _concatenated(held: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    one, other = (np.concatenate(side) for side in zip(*held, strict=True))
    return one, other


def _sizes(generation: np.ndarray) -> Counter[int]:
    """How many rows are of each generation."""
    found: Counter[int] = Counter()
    for part in pieces(len(generation)):
        values, counts = np.unique(generation[part], return_counts=True)
        found.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return found
