"""Keyed hashes: the only source of chance in a plan, the same on every machine, in every process, for ever."""

import numpy as np
import pyarrow as pa

U64 = np.uint64
Words = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]

GOLDEN = U64(0x9E3779B97F4A7C15)

# Strings hashed at once: bounds the memory at some 100 MB.
_CHUNK = 1 << 16


def mix(x: Words) -> Words:
    """SplitMix64's finaliser on arrays (Steele, Lea, Flood, OOPSLA 2014)."""
    x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
    return x ^ (x >> U64(31))


def key(*parts: object) -> Words:
    """A key from integers or integer arrays, elementwise; never a scalar, for these warn when they wrap."""
    state: Words = np.zeros(1, U64)
    for part in parts:
        state = mix(state + GOLDEN + np.atleast_1d(np.asarray(part)).astype(U64))
    return state


def of_strings(strings: pa.ChunkedArray, salt: int) -> Words:
    """A hash of each string's UTF-8 bytes: tabulation hashing with a computed table (Zobrist 1970)."""
    hashes = np.zeros(len(strings), U64)
    done = 0
    for chunk in strings.chunks:
        for start in range(0, len(chunk), _CHUNK):
            part = chunk.slice(start, _CHUNK)
            hashes[done : done + len(part)] = _hash(part.cast(pa.large_string()), salt)
            done += len(part)
    return hashes


def _hash(strings: pa.Array, salt: int) -> Words:
    _, offsets, data = strings.buffers()
    ends = np.frombuffer(offsets, np.int64)[strings.offset : strings.offset + len(strings) + 1]
    lengths = np.diff(ends)
    state = key(salt, lengths)
    if data is None or not lengths.any():
        return mix(state)
    text = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]].astype(U64)
    place = np.arange(len(text)) - np.repeat(ends[:-1] - ends[0], lengths)
    table = mix((place.astype(U64) << U64(8)) + text + key(salt))
    filled = lengths > 0
    state[filled] ^= np.bitwise_xor.reduceat(table, (ends[:-1] - ends[0])[filled])
    return mix(state)
