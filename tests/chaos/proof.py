"""What must hold of a run, whatever happened in it: read from its ledger, its journal and the plan alone."""

import json
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from producer.api.unit import UnitId
from producer.journal import read
from producer.rejects import Rejects
from tests.chaos.child import Place
from tests.chaos.maker import ChaosMaker, Job, told

# Of a step, by unit: what the trainer was given.
Steps = list[dict[str, Any]]


def read_ledger(place: Place) -> tuple[Steps, dict[str, int]]:
    """What the training consists of in the end, and how it came to that.

    Each start of the trainer goes on from a step that an earlier one had done, and replaces what came after.
    AssertionError if one leaves a gap, or if two tries at a unit were given different things.
    """
    trained: Steps = []
    seen: dict[str, Any] = {}
    start, tries = 0, 0
    for raw in place.ledger.read_text().splitlines():
        line = json.loads(raw)
        step = int(line["step"])
        if line["start"] != start:
            assert line["start"] > start, "an older start of the trainer went on"
            start = int(line["start"])
            assert step <= len(trained), f"start {start} begins at step {step}, only {len(trained)} are done"
            del trained[step:]
        assert step == len(trained), f"step {step} after {len(trained)} steps"
        trained.append(line["units"])
        tries += 1
        units = [(f"{step} {unit}", given) for unit, given in line["units"].items()]
        for unit, given in [*units, *line["validation"].items()]:
            # After going back a step may come by another recipe, which was put in force meanwhile.
            unit = f"{unit} by {given['plan']}"
            assert seen.setdefault(unit, given) == given, f"two tries at {unit} were given different samples or bits"
    return trained, {"starts": start, "steps tried": tries, "steps trained": len(trained)}


def _maker(job: Job, own: str) -> ChaosMaker:
    """A maker with a cache and a journal of its own, by the recipes that the run had."""
    maker = ChaosMaker(job.model_copy(update={"disk": Path(own), "seconds": 0.0}))
    for line in read(job.journal)[1:]:
        maker.adopt(line)
    return maker


def expected(job: Job, steps: int) -> Steps:
    """What an undisturbed training is given, made anew."""
    with tempfile.TemporaryDirectory() as own:
        maker = _maker(job, own)
        return [
            {str(unit): told(maker(UnitId("train", step, unit))[0]) for unit in range(job.units)}
            for step in range(steps)
        ]


def prove(place: Place, job: Job, steps: int) -> dict[str, Any]:
    """The books of a run. AssertionError says what was lost, given twice or left out without a reason."""
    trained, counts = read_ledger(place)
    assert len(trained) == steps, f"{len(trained)} of {steps} steps"
    for step, (given, wanted) in enumerate(zip(trained, expected(job, steps), strict=True)):
        assert given == wanted, f"step {step}: {given}, undisturbed it is {wanted}"
    with tempfile.TemporaryDirectory() as own:
        maker = _maker(job, own)
    journal = Rejects(job.rejects)
    books: dict[str, _Book] = {}
    for step, units in enumerate(trained):
        for plan in maker.plan.step(step):
            given, unit = units[str(plan.unit.unit)], plan.unit
            planned, left_out = maker.keys(unit), journal.known(plan.plan, unit)
            assert all(left_out.values()), f"{unit}: no reason for one of {left_out}"
            assert [key for key in planned if key not in left_out] == given["keys"], f"{unit}: lost {planned}"
            assert given["missing"] == len(planned) - len(given["keys"]), f"{unit}: miscounted"
            book = books.setdefault(f"{plan.split} {plan.bucket}", _Book())
            book.handed.extend(planned)
            book.trained += len(given["keys"])
            book.rejected += given["missing"]
    # A full disk cuts lines short; what they said is then said again.
    counts |= {"torn lines": journal.torn, "recipes": len(maker.plan.parts)}
    if len(maker.plan.parts) > 1:
        return counts | {"groups": {name: book.count() for name, book in books.items()}}
    return counts | {"groups": {name: book.close(_members(maker, name)) for name, book in books.items()}}


@dataclass
class _Book:
    """What was handed out of one group, in order."""

    handed: list[str] = field(default_factory=list)
    trained: int = 0
    rejected: int = 0

    def count(self) -> dict[str, int]:
        """in = trained + rejected, where passes end in the middle of a step."""
        assert len(self.handed) == self.trained + self.rejected
        return {"in": len(self.handed), "trained": self.trained, "rejected": self.rejected}

    def close(self, members: set[str]) -> dict[str, int]:
        """in = trained + rejected + pending, once nothing was missing from or twice in any closed pass.

        For plans whose passes end with a step.
        """
        size = len(members)
        closed, rest = divmod(len(self.handed), size)
        for number in range(closed):
            counts = Counter(self.handed[number * size : (number + 1) * size])
            assert counts == Counter(members), f"pass {number} misses or repeats samples"
        pending = members - set(self.handed[closed * size :])
        assert len(pending) == size - rest, "the open pass repeats samples"
        begun = size * (closed + (rest > 0))
        pending_count = len(pending) if rest else 0
        assert begun == self.trained + self.rejected + pending_count
        return {
            "in": begun,
            "trained": self.trained,
            "rejected": self.rejected,
            "pending": pending_count,
            "closed passes": closed,
        }


def _members(maker: ChaosMaker, group: str) -> set[str]:
    """The samples of a group, by the selection."""
    chosen = maker.plan.selection
    split, _, bucket = group.partition(" ")
    usable = (chosen.tokens[chosen.splits.index(split)] >= 0) & ~chosen.held_out
    mine = usable & (chosen.bucket == [str(each) for each in chosen.buckets].index(bucket))
    return set(maker.names(mine.nonzero()[0]))
