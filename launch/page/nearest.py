"""The samples whose scores lie closest to a line, on each side of it, found piece by piece."""

import math
from dataclasses import dataclass, field

import numpy as np

from launch.page.judges import MAX, MIN
from launch.page.tally import Tally


@dataclass(eq=False)
class Side:
    """One side of a line at `at`: the closest `most` items. Of equal ones those with the smaller hash, so that many
    alike are met from all over the set.
    """

    bound: str  # "min" or "max", whose line it is; "" for the ends of scores without a line
    name: str  # "below" or "above"
    at: float
    most: int
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    captions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # which of the row; 0 of a sample
    values: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float64))
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

    def add(self, rows: np.ndarray, captions: np.ndarray, values: np.ndarray, hashes: np.ndarray) -> None:
        """Look at more items."""
        mine = np.flatnonzero(self._holds(values))
        rows, captions = (np.append(old, new[mine]) for old, new in ((self.rows, rows), (self.captions, captions)))
        values, hashes = (np.append(old, new[mine]) for old, new in ((self.values, values), (self.hashes, hashes)))
        first = np.lexsort((hashes, self._distance(values)))[: self.most]
        self.rows, self.captions, self.values, self.hashes = rows[first], captions[first], values[first], hashes[first]

    def _holds(self, values: np.ndarray) -> np.ndarray:
        if not math.isfinite(self.at):
            return np.isfinite(values)
        # A bound is itself allowed: it belongs to the side that is kept.
        if self.name == "below":
            return values < self.at if self.bound == MIN else values <= self.at
        return values >= self.at if self.bound == MIN else values > self.at

    def _distance(self, values: np.ndarray) -> np.ndarray:
        if math.isfinite(self.at):
            return np.abs(values - self.at)
        return -values if self.at > 0 else values


def sides(tally: Tally, most: int) -> list[Side]:
    """Both sides of every line of a judge; of one without a line its lowest and its highest scores."""
    judge = tally.judge
    lines = dict(judge.bounds)
    if judge.mark is not None:
        lines[MAX] = judge.mark
    found = [Side(bound, name, at, most) for bound, at in lines.items() for name in ("below", "above")]
    return found or [Side("", "below", -math.inf, most), Side("", "above", math.inf, most)]
