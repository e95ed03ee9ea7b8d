"""How many workers a fleet wants: a rule over what is seen of it, without Ray and without a clock of its own.

What is missing cannot be read off the rates alone: while the horizon is full workers make no more than is trained. So
the rule looks at how busy they are, and changes nothing before the last change can have shown.
"""

import math
from dataclasses import dataclass

# Shares of the horizon below which units run short, and above which there are plenty; between them nothing changes.
_SHORT, _PLENTY = 0.5, 0.9
# Shares of the workers' time spent making units: above which they can give no more, below which some are too many.
_BUSY, _IDLE = 0.85, 0.6
_TARGET = 0.75  # the share that workers are to be busy after a change
_GROWTH = 2.0  # the most that one change multiplies by
_SHRINK = 0.75  # and the least


@dataclass(frozen=True)
class Sight:
    """A look at the fleet: seconds of any origin, training units ahead, how full the horizon is (0 to 1), whether a
    trainer waits for a unit, the share of time that workers spent on units since the look before (0 to 1), workers.
    """

    now: float
    units_ahead: int
    fill: float
    waited: bool
    busy: float
    workers: int


class Scaler:
    """Between `least` and `most` workers. `short_s`: of shortage before more are wanted; `idle_s`: of plenty before
    fewer are; `settle_s`: after a change, for it to show.
    """

    def __init__(
        self, least: int, most: int, *, short_s: float = 10.0, idle_s: float = 300.0, settle_s: float = 60.0
    ) -> None:
        self.least, self.most = least, max(least, most)
        self.wanted = least
        self._short_s, self._idle_s, self._settle_s = short_s, idle_s, settle_s
        self._short: Sight | None = None  # since when units run short
        self._idle: float | None = None  # since when there are plenty
        self._busiest = 0.0  # share since then
        self._changed = -math.inf

    def look(self, seen: Sight) -> int:
        """How many workers are wanted now."""
        if seen.now - self._changed < self._settle_s:
            self._short = self._idle = None
            return self.wanted
        if self._runs_short(seen):
            # Not knowing how much faster, by as much as the busy ones are over what they should be, or double.
            factor = _GROWTH if seen.waited else max(1.0, seen.busy / _TARGET)
            self._change(seen, max(self.wanted + 1, math.ceil(self.wanted * min(_GROWTH, factor))))
        elif self._has_plenty(seen):
            needed = math.ceil(self.wanted * max(_SHRINK, self._busiest / _TARGET))
            self._change(seen, min(self.wanted - 1, needed))
        return self.wanted

    def _runs_short(self, seen: Sight) -> bool:
        """Whether units have run short for long, and did not become more meanwhile."""
        if seen.fill >= _SHORT or seen.busy < _BUSY:
            self._short = None
            return False
        since = self._short = self._short or seen
        if seen.now - since.now < self._short_s:
            return False
        if seen.units_ahead > since.units_ahead and not (seen.waited and since.waited):
            self._short = seen  # they catch up by themselves
            return False
        return seen.waited or seen.units_ahead < since.units_ahead

    def _has_plenty(self, seen: Sight) -> bool:
        """Whether the horizon has been full, and workers idle, for long."""
        if seen.fill < _PLENTY or seen.busy > _IDLE or seen.waited:
            self._idle = None
            return False
        if self._idle is None:
            self._idle, self._busiest = seen.now, 0.0
        self._busiest = max(self._busiest, seen.busy)
        return seen.now - self._idle >= self._idle_s

    def _change(self, seen: Sight, wanted: int) -> None:
        wanted = min(self.most, max(self.least, wanted))
        if wanted != self.wanted:
            self.wanted, self._changed = wanted, seen.now
        self._short = self._idle = None


def busy_share(before: dict[str, dict[str, float]], now: dict[str, dict[str, float]]) -> float:
    """The share of time that workers spent making units between two looks at their counters (Worker.numbers).

    1 where no worker was seen twice: new ones have all to do.
    """
    making = total = 0.0
    for name, counts in now.items():
        last = before.get(name)
        if not last or counts.get("making_seconds", 0.0) < last.get("making_seconds", 0.0):
            continue  # new, or started again
        spent = counts.get("making_seconds", 0.0) - last.get("making_seconds", 0.0)
        making += spent
        total += spent + counts.get("idle_seconds", 0.0) - last.get("idle_seconds", 0.0)
    return making / total if total > 0 else 1.0
