"""Numbers of one operator over all rows: what it judged, how its scores are spread, whether bounds explain it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

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
    refused: int = 0  # items it says no to; of captions those that no judge before it refused
    spared: int = 0  # items with a score whose source is exempt from it
    dropped: int = 0  # samples that it is the first to say no to
    failed: int = 0  # samples that are left out since it raised on them
    low: float = math.inf
    high: float = -math.inf
    whole: bool = True  # all scores are whole numbers
    steady: bool = True  # its bounds alone give every verdict that is stored
    _passed: list[float] = field(default_factory=lambda: [math.inf, -math.inf])  # lowest and highest score
    _failed: list[float] = field(default_factory=lambda: [math.inf, -math.inf])

    def add(self, values: np.ndarray, verdicts: np.ndarray) -> None:
        """Count items with their scores, NaN for none, and what is stored of each: 1 kept, 0 refused, -1 not known."""
        there = ~np.isnan(values)
        self.refused += int((verdicts == 0).sum())
        self.judged += int(there.sum())
        self.unjudged += int((~there).sum())
        finite = values[np.isfinite(values)]
        if len(finite):
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
            self.whole &= bool((finite == np.floor(finite)).all())
        for seen, verdict in ((self._failed, 0), (self._passed, 1)):
            if len(mine := values[there & (verdicts == verdict)]):
                seen[:] = min(seen[0], float(mine.min())), max(seen[1], float(mine.max()))
        # A no without a score is of what it raised on.
        known = (verdicts > 0) | (there & (verdicts == 0))
        self.steady &= bool((self.within(values[known]) == (verdicts[known] == 1)).all())

    def within(self, values: np.ndarray) -> np.ndarray:
        """Which scores the judge's own bounds let through; none at all is let through."""
        low, high = self.judge.bounds.get(MIN, -math.inf), self.judge.bounds.get(MAX, math.inf)
        return np.isnan(values) | ((values >= low) & (values <= high))

    @property
    def lines(self) -> dict[str, float]:
        """The bounds where they give every verdict, else what the verdicts imply: a setting may be of another unit."""
        return self.judge.bounds if self.steady else self.implied if self.judge.mark is None else {}

    @property
    def implied(self) -> dict[str, float]:
        """Where a line lies between all that it keeps and all that it refuses: of judges that have no bounds."""
        (passed_low, passed_high), (failed_low, failed_high) = self._passed, self._failed
        if not math.isfinite(passed_low) or not math.isfinite(failed_low):
            return {}
        if failed_high < passed_low:
            return {MIN: passed_low}
        return {MAX: passed_high} if failed_low > passed_high else {}

    def cuts(self) -> list[float]:
        """Where the axis must part what is kept from what is refused: a bound is itself kept, a mark is not."""
        low = [self.lines[MIN]] if MIN in self.lines else []
        high = [at for at in (self.lines.get(MAX), self.judge.mark) if at is not None]
        if self.whole:
            return [math.ceil(at) - 0.5 for at in low] + [math.floor(at) + 0.5 for at in high]
        return low + [math.nextafter(at, math.inf) for at in high]


@dataclass(eq=False)
class Histogram:
    """Counts between edges; what lies beyond the ends counts in the first and the last bin."""

    scale: str  # "linear", "log", or "whole": a bin a whole number
    edges: np.ndarray  # a bin holds what is at its left edge, but for the last one not what is at its right
    counts: np.ndarray
    clipped: bool  # whether scores lie beyond the ends

    @classmethod
    def of(cls, tally: Tally, some: np.ndarray) -> "Histogram":
        """An empty one for the scores of `tally`, `some` of which are at hand to choose its axis by."""
        scale, edges = _axis(tally, some[np.isfinite(some)])
        clipped = bool(tally.low < edges[0] or tally.high > edges[-1])
        return cls(scale, edges, np.zeros(len(edges) - 1, np.int64), clipped)

    def add(self, values: np.ndarray) -> None:
        """Count scores; NaN is none."""
        inside = np.clip(values[~np.isnan(values)], self.edges[0], self.edges[-1])
        self.counts += np.histogram(inside, self.edges)[0]


def _axis(tally: Tally, some: np.ndarray) -> tuple[str, np.ndarray]:
    """How the scores' axis is divided, and its edges. Bounds are edges, so that each bin is kept or refused whole."""
    if tally.low > tally.high:
        return "linear", np.asarray([0.0, 1.0])
    beside = 0.5 if tally.whole else 0.0
    cuts = tally.cuts()
    low, high = _ends([tally.low - beside, tally.high + beside, *cuts])
    if tally.whole and high - low <= _BINS:
        return "whole", np.arange(low, high + 0.5)
    if low == high:
        wide = abs(low) / 10 or 1.0
        return "linear", np.asarray([low - wide, low + wide])
    first, last = np.quantile(some, [_TAIL, 1 - _TAIL], method="nearest") if len(some) else (low, high)
    if tally.low >= 0 and 0 < first * _LOG_MIDDLE < last and high / (least := some[some > 0].min()) > _LOG_SPAN:
        low = float(min([least, *(cut for cut in cuts if cut > 0)]))
        return "log", np.exp(_divided(np.log(low), np.log(high), np.log([cut for cut in cuts if cut > low])))
    if 0 < last - first < (high - low) / _FAR:
        more = (last - first) / 4
        low, high = _ends([max(low, first - more), min(high, last + more), *cuts])
    return "linear", _divided(low, high, np.asarray(cuts))


def _divided(low: float, high: float, cuts: np.ndarray) -> np.ndarray:
    """Edges of about _BINS equal bins from `low` to `high`, with every cut among them."""
    corners = np.unique([low, *cuts, high])
    parts = [
        np.linspace(left, right, max(1, round(_BINS * (right - left) / (high - low))), endpoint=False)
        for left, right in pairwise(corners)
    ]
    return np.append(np.concatenate(parts), high)


def _ends(numbers: Sequence[float]) -> tuple[float, float]:
    return float(min(numbers)), float(max(numbers))
