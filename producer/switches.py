"""The coordinator's side of the recipe journal: who was told what, and from which step on a recipe may still change.

Steps of which a trainer was given any unit are past. How far each was given units is noted beside the journal, so a
coordinator that takes over knows it too; where the note was lost with the machine, trainers say it themselves, and no
proposal is taken until they have had the time.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from producer.api.channel import RefusedError
from producer.api.protocol import Lease, Proposed
from producer.api.unit import UnitId
from producer.journal import Journal, JournalError, Line, after, from_text

log = logging.getLogger(__name__)

_SETTLE_S = 60.0  # for trainers to say how far they were given units, where nothing is left that says so


class Switches:
    """The rules over one journal. RefusedError: the caller's past is another one, or its proposal can never hold."""

    def __init__(self, journal: Journal, now: float) -> None:
        self.journal = journal
        self._start = now

    def line(self, unit: UnitId) -> Line:
        """The line whose plan makes `unit`: what is kept all along is the first one's."""
        return self.journal.at(unit.step) if unit.stream == "train" else self.journal.lines[0]

    def unknown(self, who: str, plan: str) -> tuple[Line, ...]:
        """The lines that `who`, whose newest plan is `plan`, has not heard of; RefusedError if that one is not here."""
        lines = after(self.journal.lines, plan)
        if lines is None:
            raise RefusedError(f"{who}: its plan is {plan}, the coordinator's is {self.journal.last.id}; start it anew")
        return lines

    def agree(self, trainer: str, step: int, plan: str) -> None:
        """RefusedError unless `step` of the journal is by `plan`, as the trainer says that it trained it."""
        line = self.journal.at(step)
        if plan and step >= 0 and line.id != plan:
            raise RefusedError(
                f"trainer {trainer}: it trained step {step} by plan {plan}; the journal has plan {line.id} there, its "
                f"entry {line.number}. Start the producers with the journal that this training began with, let it go "
                "back to a checkpoint from before they part, or say train.other_plan=true to go on with other data"
            )

    def admit(self, trainer: str, incarnation: int) -> None:
        """RefusedError if a newer start of `trainer` has spoken, to this coordinator or one before."""
        known, _ = self.journal.handed.get(trainer, (-1, -1))
        if incarnation < known:
            raise RefusedError(
                f"trainer {trainer}: start {incarnation} was replaced by {known}; a newer one is running"
            )

    def at(self, trainer: str, incarnation: int, step: int) -> None:
        """`trainer` was given units through `step`; a newer start of it may have gone back."""
        known, furthest = self.journal.handed.get(trainer, (-1, -1))
        if incarnation >= known:
            self.journal.note(trainer, incarnation, max(step, furthest) if incarnation == known else step)

    def gone(self, trainer: str) -> None:
        """`trainer` holds on to no step any longer."""
        if trainer in self.journal.handed:
            self.journal.note(trainer, self.journal.handed[trainer][0], -1)

    def others(self, trainer: str) -> bool:
        """Whether a trainer besides `trainer` was given units and has not said that it is through."""
        return any(step >= 0 for name, (_, step) in self.journal.handed.items() if name != trainer)

    @property
    def least(self) -> int:
        """The first step that no trainer was given a unit of, and that no later line has."""
        return max(self.journal.last.from_step, *(step + 1 for _, step in self.journal.handed.values()), 0)

    def unsure_s(self, now: float) -> float:
        """Seconds until `least` can be relied on."""
        return 0.0 if self.journal.certain else max(0.0, self._start + _SETTLE_S - now)

    def propose(self, text: str, now: float) -> Proposed:
        """Append the line in `text` if it fits; on disk by then."""
        try:
            line = from_text(text)
        except JournalError as error:
            raise RefusedError(str(error)) from None
        last, least, wait_s = self.journal.last, self.least, self.unsure_s(now)
        if line.units != last.units:
            raise RefusedError(
                f"recipe.units: {line.units}, this training has {last.units} units a step; that cannot change"
            )
        if wait_s > 0:
            reason = f"the coordinator has just started and does not know yet how far trainers are: {wait_s:.0f} s more"
            return Proposed(False, reason, least, wait_s)
        if (line.before, line.number) != (last.id, last.number + 1):
            return Proposed(False, f"entry {last.number} of the journal was added meanwhile: look at it and try again")
        if line.from_step < least:
            reason = f"step {line.from_step} is past: units through step {least - 1} were handed out or are settled"
            return Proposed(False, f"{reason}, the least step possible is {least}", least)
        try:
            self.journal.append(line)
        except JournalError as error:
            log.error("entry %d not written: %s", line.number, error)
            raise RefusedError("the journal could not be written; see the coordinator's log. Nothing changed") from None
        return Proposed(True, "", least)


def heard(said: Lease, unknown: Sequence[Line]) -> tuple[Lease, int | None]:
    """What holds of `said` by a worker that has not heard of the lines `unknown`, and the step it can make units to."""
    until = min([line.from_step for line in unknown] + [said.until] * (said.until >= 0), default=None)
    if not unknown:
        return said, until
    step = unknown[0].from_step
    holding, encoding = (
        tuple(unit for unit in units if unit.stream != "train" or unit.step < step)
        for units in (said.holding, said.encoding)
    )
    share = len(holding) / max(1, len(said.holding))
    return replace(said, holding=holding, encoding=encoding, bytes=int(said.bytes * share)), until
