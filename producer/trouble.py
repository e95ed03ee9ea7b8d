"""Units that could not be made or delivered: why, and who may try again when."""

import math
from dataclasses import dataclass, field

from producer.api.unit import UnitId

_RETRY_S = (1.0, 60.0)  # the pause after a failed try at a unit: the first one, and the longest
_MOST = 256  # units that are remembered


@dataclass
class Trouble:
    """How often making a unit failed, the last reason, and when each worker may try again."""

    failures: int = 0
    reason: str = ""
    until: dict[str, float] = field(default_factory=dict)


class Troubles(dict[UnitId, Trouble]):
    """By unit; the oldest make room for new ones."""

    def failed(self, unit: UnitId, worker: str, reason: str, now: float) -> None:
        """`worker` could not make `unit`: others go first, and each failure makes the pause longer."""
        trouble = self._of(unit)
        trouble.failures += 1
        trouble.reason = f"making it failed {trouble.failures} times, last {worker}: {reason}"
        first, longest = _RETRY_S
        trouble.until[worker] = now + min(longest, first * 2.0 ** min(trouble.failures - 1, 10))

    def lost(self, unit: UnitId, worker: str, until: float) -> None:
        """`worker` held `unit` and did not deliver it."""
        trouble = self._of(unit)
        trouble.until[worker] = until
        trouble.reason = f"{worker} did not deliver it"

    def may(self, unit: UnitId, worker: str, now: float, *, alone: bool) -> bool:
        """Whether `worker` may try `unit`; one that lost it may at once where it is `alone`."""
        trouble = self.get(unit)
        if trouble is None or (not trouble.failures and alone):
            return True
        return now >= trouble.until.get(worker, -math.inf)

    def _of(self, unit: UnitId) -> Trouble:
        if len(self) >= _MOST and unit not in self:
            del self[next(iter(self))]
        return self.setdefault(unit, Trouble())
