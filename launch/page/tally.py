"""Numbers of one operator over all rows: what it judged, how its scores are spread, whether bounds explain it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from launch.page.judges import MAX, MIN, Judge

_BINS = 60
# Scores spread over so many orders of magnitude are shown on a logarithmic axis: file sizes, areas.
_LOG_SPAN, _LOG_MIDDLE = 100.0, 20.0
# A linear axis ends where the ends hold nothing but so small a share of the scores, if they are far away.
_TAIL, _FAR = 0.005, 4.0


@dataclass
class Tally:
    """What was counted of a judge. Its items are samples, or captions where it judges those."""

    judge: Judge
    judged: int = 0  # items with a score
    unjudged: int = 0
    refused: int = 0  # samples it says no to, whoever else does
    dropped: int = 0  # samples that it is the first to say no to
    low: float = math.inf
    high: float = -math.inf
    whole: bool = True  # all scores are whole numbers
    steady: bool = True  # its bounds alone give every verdict that is stored
    _passed: list[float] = field(default_factory=lambda: [math.inf, -math.inf])  # lowest and highest score
    _failed: list[float] = field(default_factory=lambda: [math.inf, -math.inf])

    def add(self, values: np.ndarray, verdicts: np.ndarray) -> None:
        """Count items with their scores, NaN for none, and what is stored of each: 1 kept, 0 refused, -1 not known."""
        there = ~np.isnan(values)
        self.judged += int(there.sum())
        self.unjudged += int((~there).sum())
        finite = values[np.isfinite(values)]
        if len(finite):
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
            self.whole &= bool((finite == np.floor(finite)).all())
        for seen, verdict in ((self._failed, 0), (self._passed, 1)):
            if len(mine := values[there & (verdicts == verdict)]):
                seen[:] = min(seen[0], float(mine.min())), max(seen[1], float(mine.max()))
        known = verdicts >= 0 if self.judge.kind == "captions" else there | (verdicts == 0)
        self.steady &= bool((self.within(values[known]) == (verdicts[known] == 1)).all())

    def within(self, values: np.ndarray) -> np.ndarray:
        """Which scores the judge's own bounds let through; none at all is let through."""
        low, high = self.judge.bounds.get(MIN, -math.inf), self.judge.bounds.get(MAX, math.inf)
        return np.isnan(values) | ((values >= low) & (values <= high))

    @property
    def implied(self) -> dict[str, float]:
        """Where a line lies between all that it keeps and all that it refuses: of judges that have no bounds."""
        (passed_low, passed_high), (failed_low, failed_high) = self._passed, self._failed
        if not math.isfinite(passed_low) or not math.isfinite(failed_low):
            return {}
        if failed_high < passed_low:
            return {MIN: passed_low}
        return {MAX: passed_high} if failed_low > passed_high else {}

    def marks(self) -> list[float]:
        """Where lines are drawn among the scores."""
        return [*self.judge.bounds.values(), *([] if self.judge.mark is None else [self.judge.mark])]


@dataclass(eq=False)
class Histogram:
    """Counts between edges; what lies beyond the ends counts in the first and the last bin."""

    scale: str  # "linear", "log", or "whole": a bin a whole number
    edges: np.ndarray
    counts: np.ndarray
    clipped: bool  # whether scores lie beyond the ends

    @classmethod
    def of(cls, tally: Tally, some: np.ndarray) -> "Histogram":
        """An empty one for the scores of `tally`, `some` of which are at hand to choose its axis by."""
        scale, edges = _axis(tally, some[np.isfinite(some)])
        clipped = tally.low < edges[0] or tally.high > edges[-1]
        return cls(scale, edges, np.zeros(len(edges) - 1, np.int64), clipped)

    def add(self, values: np.ndarray) -> None:
        """Count scores; NaN is none."""
        inside = np.clip(values[~np.isnan(values)], self.edges[0], self.edges[-1])
        self.counts += np.histogram(inside, self.edges)[0]


def _axis(tally: Tally, some: np.ndarray) -> tuple[str, np.ndarray]:
    if tally.low > tally.high:
        return "linear", np.asarray([0.0, 1.0])
    ends = _ends([tally.low, tally.high, *tally.marks()])
    if tally.whole and tally.high - tally.low <= _BINS and ends[1] - ends[0] <= 2 * _BINS:
        return "whole", np.arange(math.floor(ends[0]) - 0.5, math.ceil(ends[1]) + 1)
    if ends[0] == ends[1]:
        wide = abs(ends[0]) / 10 or 1.0
        return "linear", np.asarray([ends[0] - wide, ends[0] + wide])
    first, last = np.quantile(some, [_TAIL, 1 - _TAIL]) if len(some) else ends
    if ends[0] > 0 and ends[1] / ends[0] > _LOG_SPAN and last / first > _LOG_MIDDLE:
        return "log", np.geomspace(*ends, _BINS + 1)
    if 0 < last - first < (ends[1] - ends[0]) / _FAR:
        beside = (last - first) / 4
        ends = _ends([max(ends[0], first - beside), min(ends[1], last + beside), *tally.marks()])
    return "linear", np.linspace(*ends, _BINS + 1)


def _ends(numbers: Sequence[float]) -> tuple[float, float]:
    return float(min(numbers)), float(max(numbers))
