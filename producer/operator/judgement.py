"""What operators are: judges of samples, each with one number a sample and a bound on it.

The number is a fact and kept; the verdict follows from it and a threshold, so that moving a threshold scores nothing
again. An operator either sees samples, a few at a time, in parallel (`Operator`), or the whole set at once, after the
others (`SetOperator`). Its docstring defines its score: unit, range, what higher means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from producer.source.shard import RawSample

# Pixels of the longest side that operators see at most, so that a score does not depend on the size of the scan and a
# batch of samples has a bounded size.
SIDE = 512


class Score(NamedTuple):
    """An operator's number for one sample, None where there is nothing to judge; `note` is what it has to say."""

    value: float | None
    note: str = ""


class Judgement(NamedTuple):
    """`verdict` is True to keep, False to drop with a reason, None where not judged."""

    score: float | None
    verdict: bool | None
    reason: str = ""


NOT_JUDGED = Judgement(None, None)


class Picture(NamedTuple):
    """A decoded image: its own size in pixels, upright, and RGB uint8 [y, x, 3] reduced to SIDE."""

    width: int
    height: int
    pixels: np.ndarray


@dataclass(frozen=True, eq=False)
class Sample:
    """What an operator may look at. The image was decoded once, for all of them."""

    raw: RawSample
    picture: Picture | None
    fault: str = ""  # why there is no picture


class Operator(Protocol):
    """A judge of single samples."""

    name: str
    version: int  # another one when the score's definition changes: everything is scored again

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """A score for each of a fixed batch of samples."""

    def judge(self, score: Score) -> Judgement:
        """What the threshold makes of a score."""


@dataclass(frozen=True, eq=False)
class Facts:
    """The samples that every other operator would keep, a row each."""

    key: Sequence[str]
    pixels: np.ndarray  # int64
    sha256: Sequence[str]
    phash: np.ndarray  # uint64
    dhash: np.ndarray  # uint64


class Clusters(NamedTuple):
    """Which samples are the same: `representative` holds the row kept for each row, its own when alone."""

    representative: np.ndarray  # int64
    score: np.ndarray  # float64, NaN where not judged
    reason: list[str]  # for the rows not kept


class SetOperator(Protocol):
    """A judge that compares all samples."""

    name: str
    version: int

    def cluster(self, facts: Facts) -> Clusters:
        """The clusters of equal samples; all but their representatives are dropped."""
