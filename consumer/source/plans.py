"""Which plan the units of each step were made by: a recipe may change from a step on, for all ranks alike."""

import threading
from bisect import bisect_right
from typing import NamedTuple


class InForce(NamedTuple):
    """The plan, and which entry of the producers' recipe journal it is: 0 is the first."""

    plan: str
    entry: int


class Plans:
    """What is known of the plans by step: learned from units, asked by whoever reports or keeps it; by any thread."""

    def __init__(self, step: int, plan: str, entry: int = 0) -> None:
        """`plan` was said to be in force at `step`, and may still give way there to a later entry."""
        self._lock = threading.Lock()
        self._steps = [step]
        self._plans = [InForce(plan, entry)]

    def learn(self, step: int, plan: str, entry: int) -> bool:
        """A unit of `step` is by `plan`; False if that contradicts what is known."""
        with self._lock:
            return self._learn(step, plan, entry)

    def _learn(self, step: int, plan: str, entry: int) -> bool:
        index = bisect_right(self._steps, step) - 1
        if index < 0:
            return True  # from before the start: nothing is known of it
        known, found = self._plans[index], InForce(plan, entry)
        later = self._plans[index + 1 : index + 2]
        if entry == known.entry or entry < known.entry or (later and entry > later[0].entry):
            return found == known
        if later and entry == later[0].entry:
            self._steps[index + 1] = step
            return found == later[0]
        if self._steps[index] == step:
            self._plans[index] = found
        else:
            self._steps.insert(index + 1, step)
            self._plans.insert(index + 1, found)
        return True

    def at(self, step: int) -> InForce:
        """The plan of `step`: the one of the newest step up to it of which a unit came."""
        with self._lock:
            return self._plans[max(0, bisect_right(self._steps, step) - 1)]
