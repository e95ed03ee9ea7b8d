"""Chance that follows from (seed, way, index) alone: the same draws in any process, in any order."""

import zlib

import numpy as np


def chance(seed: int, way: str, index: int) -> np.random.Generator:
    """The draws of sample `index` of `way`."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(way.encode()), index])))
