"""The batches of each step, made one step ahead: pulled, unpacked and noised while the device still works on the last.

What goes wrong here goes wrong on one model-parallel group alone. It is kept, and told to all ranks with the numbers of
the step before, so that every rank ends at the same step with its weights whole.
"""

from dataclasses import dataclass

import torch

from consumer.objective.flow import Batch, FlowObjective
from consumer.source.group import GroupSource
from producer.api.unit import UnitId


@dataclass(frozen=True, eq=False)
class Fed:
    """A unit's batch, and the seconds that its data was waited for."""

    unit: UnitId
    batch: Batch
    waited: float


class Feed:
    """`ahead` for a step, then `take` of that step."""

    def __init__(
        self, source: GroupSource, objective: FlowObjective, device: torch.device, dtype: torch.dtype, last: int
    ) -> None:
        self.source, self.objective, self.device, self.dtype, self.last = source, objective, device, dtype, last
        self.error: ValueError | OSError | None = None  # why there is no next step
        self.waited = 0.0  # seconds for the data of the step made last; on CUDA the device may have been busy meanwhile
        self._ready: tuple[int, list[Fed]] | None = None

    def ahead(self, step: int) -> None:
        """Make the batches of `step`; after the last step, nothing. An error is kept in `error`."""
        self.waited = 0.0
        if step >= self.last or self.error is not None:
            return
        try:
            self._ready = step, [self.fed(unit, step) for unit in self.source.step(step)]
            self.waited = sum(fed.waited for fed in self._ready[1])
        except (ValueError, OSError) as error:
            self.error = error

    def take(self, step: int) -> list[Fed]:
        """The batches of `step`; `ahead` has made them."""
        assert self._ready is not None and self._ready[0] == step, f"step {step} was not made ahead"
        (_, fed), self._ready = self._ready, None
        return fed

    def fed(self, unit: UnitId, step: int | str) -> Fed:
        """One unit's batch with the draws of `step`."""
        samples, waited = self.source.unit(unit)
        return Fed(unit, self.objective.batch(samples, step, self.device, self.dtype), waited)

    def validation(self) -> list[Fed]:
        """This group's held-out units, each time with the same draws."""
        return [self.fed(unit, "validation") for unit in self.source.validation()]
