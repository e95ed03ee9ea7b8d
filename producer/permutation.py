"""A keyed bijection of [0, n): any element of any shuffle at once, without the shuffle ever being made."""

import numpy as np

from producer.keyed import GOLDEN, U64, Words, mix

# Six rounds of a Feistel network leave no visible structure; four are proven enough for large domains (Luby and
# Rackoff 1988).
_ROUNDS = np.arange(1, 7).astype(U64) * GOLDEN


def permute(places: np.ndarray, sizes: np.ndarray, keys: Words) -> np.ndarray:
    """Where a shuffle of [0, size) by `key` puts each place: int64, elementwise, places in [0, size).

    A Feistel network over the next power of two, walked along its cycle until it is back inside (Black and Rogaway
    2002): fewer than two walks on average.
    """
    shape = np.broadcast_shapes(places.shape, sizes.shape, keys.shape)
    x = np.broadcast_to(places, shape).astype(U64)
    sizes = np.broadcast_to(sizes, shape)
    keys = np.broadcast_to(keys, shape)
    bits = np.frexp(np.maximum(sizes, 2) - 1.0)[1].astype(np.int64)
    high, low = (bits // 2).astype(U64), (bits - bits // 2).astype(U64)
    limits = sizes.astype(U64)
    todo = np.arange(len(x))
    while todo.size:
        walked = _feistel(x[todo], high[todo], low[todo], keys[todo])
        x[todo] = walked
        todo = todo[walked >= limits[todo]]
    return x.astype(np.int64)


def _feistel(x: Words, high: Words, low: Words, keys: Words) -> Words:
    """One pass over words of `high` + `low` bits; the halves change in turn."""
    high_mask, low_mask = (U64(1) << high) - U64(1), (U64(1) << low) - U64(1)
    a, b = x >> low, x & low_mask
    for number, constant in enumerate(_ROUNDS):
        if number % 2 == 0:
            a = a ^ (mix(b + keys + constant) & high_mask)
        else:
            b = b ^ (mix(a + (keys ^ constant)) & low_mask)
    return (a << low) | b
