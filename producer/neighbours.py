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

from producer.ordering import ordered, places
from producer.scratch import MEMORY, Space, numbers, pieces

# Under one key, this many are compared with each other: half a million pairs.
_CROWD = 1024
# Pictures, each twice, that are compared at a time: those of a range of keys, in 150 MB or so.
_PART = 1 << 20
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


def near_pairs(hashes: Hashes, radius: int, space: Space = MEMORY) -> Iterator[Pairs]:
    """Pairs within `radius` bits in both hashes, as they are or one of them mirrored, in blocks; some come repeatedly.

    The distance is the larger of the two hashes' distances. All pairs come, but of crowds (see above) at least those
    with the leaders and neighbours, and of equal hashes a chain. Arrays as long as `hashes` lie in `space`.
    """
    number = len(hashes.phash)
    if 2 * number > _LOW:
        raise OverflowError(f"{number} pictures; no more than {int(_LOW) // 2} can be compared")
    rows = ordered(number, *(one.__getitem__ for one in hashes), space=space)
    for part in pieces(number - 1):
        some = rows[part.start : part.stop + 1]
        at = np.flatnonzero(_same(some, 2))
        yield Pairs(places(some, at), places(some, at + 1), np.zeros(len(at), np.uint8))
    row, phash, dhash = _distinct(rows, space)
    del rows
    for pairs in _meet(phash, dhash, radius, space):
        yield Pairs(row[pairs.one], row[pairs.other], pairs.bits)


def _same(rows: np.ndarray, words: int) -> np.ndarray:
    """Where the next of `rows` has the same first `words`."""
    return np.asarray((rows[1:, :words] == rows[:-1, :words]).all(axis=1))


def _distinct(rows: np.ndarray, space: Space) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the sorted hashes of pictures the first of equal ones: its number, and either hash, then those mirrored."""
    new = space.filled(len(rows), np.bool_, 1)
    for part in pieces(len(rows), 1):
        new[part] = ~_same(rows[part.start - 1 : part.stop], 4)
    first = space.where(new)
    number = len(first)
    row = space.empty(number, np.int64)
    phash, dhash = space.empty(2 * number, np.uint64), space.empty(2 * number, np.uint64)
    for part in pieces(number):
        some = rows[first[part]]
        row[part] = some[:, -1]
        for place, values in enumerate((phash, dhash, phash[number:], dhash[number:])):
            values[part] = some[:, place]
    return row, phash, dhash


def _meet(phash: np.ndarray, dhash: np.ndarray, radius: int, space: Space) -> Iterator[Pairs]:
    """`near_pairs` of distinct hashes of pictures, and then of the same ones mirrored."""
    number = len(phash)
    packed = space.empty(number, np.uint64)
    for mask in _pieces(radius + 1):
        for other in _pieces(radius + 1):
            # Sorted with their place beside the key, in place: several times faster than sorting places by keys.
            for part in pieces(number):
                mixed = (((phash[part] & mask) * _SPREAD[0]) ^ (dhash[part] & other)) * _SPREAD[1]
                packed[part] = (mixed & _HIGH) | numbers(part).astype(np.uint64)
            packed.sort()
            for window in _windows(packed):
                place, mine = _gathered(packed[window], (phash, dhash), space)
                one_key = len(place) > max(_PART, _CROWD)
                near = _crowd(*mine, radius, 0, space) if one_key else _share(packed[window] >> _WORD, *mine, radius)
                for one, two, bits in near:
                    yield from _pictures(place[one], place[two], bits, number // 2)


def _windows(packed: np.ndarray) -> Iterator[slice]:
    """Sorted words in slices of _PART at most, or else of one key; no key is in two of them."""
    first = 0
    while first < len(packed):
        last = min(first + _PART, len(packed))
        if last < len(packed):
            key = packed[last] & _HIGH
            last = int(np.searchsorted(packed, key))
            if last <= first:
                last = int(np.searchsorted(packed, key | _LOW, "right"))
        yield slice(first, last)
        first = last


def _gathered(
    packed: np.ndarray, columns: tuple[np.ndarray, np.ndarray], space: Space
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The places in the low halves of words, and what is in `columns` there; in memory where that is little."""
    room = space if len(packed) > _PART else MEMORY
    place = room.empty(len(packed), np.uint32)
    for part in pieces(len(packed)):
        place[part] = packed[part] & _LOW
    return place, (room.take(columns[0], place), room.take(columns[1], place))


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
        yield from _crowd(phash[start : start + length], dhash[start : start + length], radius, start, MEMORY)
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


def _crowd(phash: np.ndarray, dhash: np.ndarray, radius: int, start: int, space: Space) -> Iterator[Pairs]:
    """Near pairs in a crowd whose places begin at `start`: with leaders, and with neighbours in either hash's order."""
    rest = space.numbers(len(phash))
    for _ in range(_LEADERS):
        if len(rest) < 2:
            break
        leader, left = rest[0], 0
        for part in pieces(len(rest), 1):
            found = _compare(phash, dhash, np.full(part.stop - part.start, leader), rest[part], radius)
            yield Pairs(found.one + start, found.other + start, found.bits)
            # Who follows this leader needs no other.
            others = np.setdiff1d(rest[part], found.other, assume_unique=True)
            rest[left : left + len(others)] = others
            left += len(others)
        rest = rest[:left]
    for words in ((phash, dhash), (dhash, phash)):
        rows = ordered(len(phash), *(word.__getitem__ for word in words), space=space)
        for part in pieces(len(phash)):
            order = places(rows, slice(part.start, part.stop + _NEIGHBOURS))
            for step in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
                one = order[: min(part.stop - part.start, len(order) - step)]
                found = _compare(phash, dhash, one, order[step : step + len(one)], radius)
                yield Pairs(found.one + start, found.other + start, found.bits)
