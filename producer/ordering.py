"""Rows of any number in order: words beside each other, big end first, sorted in place as strings of bytes.

Such a sort needs no memory beside the rows, which may lie in a mapped file, and takes less time than sorting places by
one column after the other.
"""

from collections.abc import Callable, Iterator

import numpy as np

from producer.scratch import MEMORY, Space, numbers, pieces

# A uint64 for each row of a slice, whose order is that of the rows.
Word = Callable[[slice], np.ndarray]

_SIGN = np.uint64(1 << 63)


def ordered(number: int, *words: Word, space: Space = MEMORY) -> np.ndarray:
    """The `words` of rows 0 to `number`, and last each row's number: big-endian uint64 [number, words + 1], sorted."""
    width = len(words) + 1
    rows = space.empty(number * width, ">u8").reshape(number, width)
    for part in pieces(number):
        for place, word in enumerate((*words, numbers)):
            rows[part, place] = word(part)
    rows.reshape(-1).view(f"S{8 * width}").sort()
    return rows


def grouped(rows: np.ndarray, words: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Of `ordered` rows piece by piece, the place where the group of each begins: of those equal in so many `words`."""
    first = 0
    for part in pieces(len(rows)):
        key = rows[max(0, part.start - 1) : part.stop, :words]
        new = np.ones(part.stop - part.start, bool)
        new[0 if part.start else 1 :] = (key[1:] != key[:-1]).any(axis=1)
        begin = np.maximum.accumulate(np.where(new, numbers(part), first))
        first = int(begin[-1])
        yield part, begin


def places(rows: np.ndarray, at: slice | np.ndarray) -> np.ndarray:
    """The numbers of `ordered` rows at `at`, int64."""
    return np.asarray(rows[at, -1].astype(np.int64))


def signed(values: np.ndarray) -> np.ndarray:
    """Words in the order of int64 `values`."""
    return values.astype(np.int64).view(np.uint64) ^ _SIGN


def real(values: np.ndarray) -> np.ndarray:
    """Words in the order of float64 `values`, NaN as the smallest."""
    # Both zeros are one.
    bits = (np.where(np.isnan(values), -np.inf, values) + 0.0).view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)
