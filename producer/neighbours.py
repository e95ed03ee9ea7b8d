"""Pairs of pictures whose hashes differ in few bits, without comparing all pairs: multi-index hashing (Norouzi et al.,
arXiv 1307.2982) over two hashes that must agree.

Hashes within `radius` bits, cut into radius + 1 pieces each, agree in one piece at least; so pictures that are near in
both hashes meet under one of (radius + 1)² keys, each a piece of one hash beside a piece of the other. That is exact.
Pictures that share a key are compared with each other; a crowd under one key only with some of it, so that time is
linear in the set whatever is in it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Under one key, this many are compared with each other: half a million pairs.
_CROWD = 1024
# Pictures, each twice, that are sorted at a time: those of a range of keys, in 500 MB or so.
_PART = 1 << 22
# In a larger crowd each is compared with so many of its leaders, and with so many neighbours in either hash's order.
_LEADERS = 16
_NEIGHBOURS = 32
# Odd numbers that spread the bits of pieces over a word (splitmix64's), for keys of 32 bits.
_SPREAD = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_HIGH = np.uint64(0xFFFFFFFF00000000)
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)


class Hashes(NamedTuple):
    """Perceptual hashes, uint64 [n] each: two of a picture, and the same two of its mirror image."""

    phash: np.ndarray
    dhash: np.ndarray
    phash_mirror: np.ndarray
    dhash_mirror: np.ndarray


class Pairs(NamedTuple):
    """Rows that are near each other, one != other, and by how many bits they differ; int64 and uint8 [pairs]."""

    one: np.ndarray
    other: np.ndarray
    bits: np.ndarray


def near_pairs(hashes: Hashes, radius: int) -> Iterator[Pairs]:
    """Pairs within `radius` bits in both hashes, as they are or one of them mirrored, in blocks; some come repeatedly.

    The distance is the larger of the two hashes' distances. All pairs come, but of crowds (see above) at least those
    with the leaders and neighbours, and of equal hashes a chain.
    """
    order = np.lexsort((hashes.dhash_mirror, hashes.phash_mirror, hashes.dhash, hashes.phash))
    same = _same(hashes.phash, order) & _same(hashes.dhash, order)
    chained = np.flatnonzero(same)
    yield Pairs(order[chained], order[chained + 1], np.zeros(len(chained), np.uint8))
    same &= _same(hashes.phash_mirror, order) & _same(hashes.dhash_mirror, order)
    distinct = order[np.concatenate([[True], ~same])] if len(order) else order
    for pairs in _meet(Hashes(*(one[distinct] for one in hashes)), radius):
        yield Pairs(distinct[pairs.one], distinct[pairs.other], pairs.bits)


def _same(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Where the next in `order` has the same value."""
    return values[order[1:]] == values[order[:-1]]


def _meet(hashes: Hashes, radius: int) -> Iterator[Pairs]:
    """`near_pairs` of distinct hashes; each picture is there twice, the second time mirrored."""
    number = len(hashes.phash)
    phash = np.concatenate([hashes.phash, hashes.phash_mirror])
    dhash = np.concatenate([hashes.dhash, hashes.dhash_mirror])
    parts = -(-2 * number // _PART)
    for mask in _pieces(radius + 1):
        key = (phash & mask) * _SPREAD[0]
        for other in _pieces(radius + 1):
            # Sorted with their place beside the key, which is several times faster than sorting places by keys.
            mixed = (key ^ (dhash & other)) * _SPREAD[1]
            part = ((mixed >> _WORD) * np.uint64(parts)) >> _WORD
            for one_part in range(parts):
                packed = np.flatnonzero(part == one_part).astype(np.uint64)
                packed |= mixed[packed] & _HIGH
                packed.sort()
                place = (packed & _LOW).astype(np.uint32)
                for one, two, bits in _share(packed >> _WORD, phash[place], dhash[place], radius):
                    yield from _pictures(place[one], place[two], bits, number)


def _pictures(one: np.ndarray, other: np.ndarray, bits: np.ndarray, number: int) -> Iterator[Pairs]:
    """Pairs of pictures from pairs of places, where picture i lies at i and, mirrored, at number + i."""
    # Both mirrored is neither mirrored; and a symmetric picture is no pair with itself.
    told = ((one < number) | (other < number)) & (one % number != other % number)
    if told.any():
        yield Pairs((one[told] % number).astype(np.int64), (other[told] % number).astype(np.int64), bits[told])


def _pieces(number: int) -> list[np.uint64]:
    """Masks that cut 64 bits into `number` pieces; every piece has bits from everywhere, since neighbours are alike."""
    return [np.uint64(sum(1 << bit for bit in range(piece, 64, number))) for piece in range(number)]


def _share(key: np.ndarray, phash: np.ndarray, dhash: np.ndarray, radius: int) -> Iterator[Pairs]:
    """Near pairs among the places that share a key; keys are sorted."""
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.zeros(0, np.int64)
    size = np.diff(np.append(first, len(key)))
    for start, length in zip(first[size > _CROWD].tolist(), size[size > _CROWD].tolist(), strict=True):
        yield from _crowd(phash[start : start + length], dhash[start : start + length], radius, start)
    size[size > _CROWD] = 1
    # All places with the next one, then with the one after it, ...: few steps, each over everything that is left.
    left = np.repeat(first + size, np.diff(np.append(first, len(key))))
    at = np.arange(len(key))
    step = 1
    while len(at := at[at + step < left[at]]):
        yield _compare(phash, dhash, at, at + step, radius)
        step += 1


def _compare(phash: np.ndarray, dhash: np.ndarray, one: np.ndarray, other: np.ndarray, radius: int) -> Pairs:
    """Those of the pairs (one, other) that are near."""
    bits = np.bitwise_count(phash[one] ^ phash[other])
    near = np.flatnonzero(bits <= radius)
    one, other = one[near], other[near]
    bits = np.maximum(bits[near], np.bitwise_count(dhash[one] ^ dhash[other]))
    near = np.flatnonzero(bits <= radius)
    return Pairs(one[near], other[near], bits[near])


def _crowd(phash: np.ndarray, dhash: np.ndarray, radius: int, start: int) -> Iterator[Pairs]:
    """Near pairs in a crowd whose places begin at `start`: with leaders, and with neighbours in either hash's order."""
    rest = np.arange(len(phash))
    for _ in range(_LEADERS):
        if len(rest) < 2:
            break
        found = _compare(phash, dhash, np.full(len(rest) - 1, rest[0]), rest[1:], radius)
        yield Pairs(found.one + start, found.other + start, found.bits)
        # Who follows this leader needs no other.
        rest = np.setdiff1d(rest[1:], found.other, assume_unique=True)
    for order in (np.lexsort((dhash, phash)), np.lexsort((phash, dhash))):
        for step in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
            found = _compare(phash, dhash, order[:-step], order[step:], radius)
            yield Pairs(found.one + start, found.other + start, found.bits)
