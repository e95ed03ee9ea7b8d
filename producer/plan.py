"""The plan: step n to units to samples, a pure function of the index, the recipe in force, the seed and n.

Every worker computes it alone; nobody records it. A trainer that restarts, on any number of ranks, asks for step n and
gets the same samples. Another recipe or a newer index generation from some step on is another part of the plan: a line
of the journal (producer/journal.py) whose body is `Terms`.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ValidationError

from producer.api.bucket import Bucket
from producer.api.deal import deal
from producer.api.unit import UnitId
from producer.cost import CostModel
from producer.entry import Entry, Group, compile_entry, unit_sizes
from producer.recipe import T2I, RecipeConfig, Selection, select

# Counts up with every change that makes another order of the same inputs, so that two releases never mix their units.
ORDER = 1

# Steps that the imbalance is predicted over.
_WINDOW = 64


class PlanError(ValueError):
    """The plan does not suit the ranks that are to train by it."""


@dataclass(frozen=True, eq=False)
class UnitPlan:
    """What goes into a unit: `rows` are row numbers of the table of plan `plan`, and `split` says which caption."""

    unit: UnitId
    bucket: Bucket
    split: str
    task: str
    rows: np.ndarray
    plan: str = ""
    kind: tuple[str, ...] = ()  # its class; what is validated on is of all classes


class Terms(BaseModel, frozen=True, strict=True, extra="forbid"):
    """What a line of the journal says: the body of producer.journal.Line."""

    recipe: RecipeConfig
    index: Path
    generation: str
    index_id: str
    passes: Literal["continue", "restart"] = "continue"  # of the open pass of each group
    cursors: str = ""  # Plan.cursors where the line begins: how far the one before has come, by its own reckoning

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "Terms":
        """The terms in a line's body; PlanError if it has others."""
        try:
            return cls.model_validate_json(json.dumps(body), strict=True)
        except ValidationError as error:
            raise PlanError(f"the journal's entry is of another release or kind: {error}") from None

    def body(self) -> dict[str, Any]:
        """As JSON values."""
        return {"recipe": self.recipe.said(), **self.model_dump(mode="json", exclude={"recipe"})}


@dataclass(frozen=True, eq=False)
class Part:
    """The plan called `id`, from `entry.first_step` on, over rows with these keys."""

    id: str
    recipe: RecipeConfig
    selection: Selection
    entry: Entry
    keys: pa.ChunkedArray
    waiting: dict[str, np.ndarray]  # by split, rows that were seen before `entry` began, sorted: see Plan.seen


class Plan:
    """The units of every step. `units` of them make a step, and `selection` says what was first taken from the index.

    `id`, `selection` and `validation` are the first part's: what is held out stays the same.
    """

    def __init__(self, index: str, table: pa.Table, recipe: RecipeConfig, *, seed: int, cost: CostModel) -> None:
        """The plan over the index generation called `index` with rows `table`.

        RecipeError says why a recipe does not fit them.
        """
        self.id = _identity(index, recipe, seed, cost)
        self.units = recipe.units
        self.selection = select(table, recipe)
        self._seed, self._cost = seed, cost
        entry = compile_entry(self.selection, recipe, seed=seed, cost=cost)
        self.parts = [Part(self.id, recipe, self.selection, entry, table["key"], {})]
        self.validation = _validation(self.selection, recipe, cost, self.id)

    def extend(self, id: str, first_step: int, terms: Terms, index: str, table: pa.Table) -> Part:
        """Another part from `first_step` on, called `id`, over the generation `index`; steps before it do not change.

        Linear in both tables. RecipeError if the recipe does not fit, PlanError if it cannot follow what was before or
        the plan or the generation is not the one that `terms` were made for.
        """
        last = self.parts[-1]
        if first_step < last.entry.first_step:
            raise PlanError(f"step {first_step}: the newest part of the plan begins later, at {last.entry.first_step}")
        self.check_switch(terms.recipe)
        if terms.index_id != index:
            raise PlanError(
                f"{terms.index / terms.generation}: is index {index[:16]}, and the journal's entry {len(self.parts)} "
                f"was made for {terms.index_id[:16]}: the dataset was swapped. Restore the generation, or apply the "
                "recipe to the one that is there"
            )
        if terms.cursors != self.cursors(first_step):
            raise PlanError(
                f"entry {len(self.parts)} of the journal was made for another plan than this one is at step "
                f"{first_step}: the index or the release differs"
            )
        seen = {} if terms.passes == "restart" else self.seen(first_step)
        moved = _rows(last.keys, table["key"]) if table["key"] is not last.keys else None
        if moved is not None:
            seen = {split: _moved(rows, moved) for split, rows in seen.items()}
        first = self.parts[0]
        held = _moved(self.selection.validation, _rows(first.keys, table["key"]))
        selection = select(table, terms.recipe, bound=self.selection.held_below, also=held)
        entry = compile_entry(
            selection,
            terms.recipe,
            seed=self._seed,
            cost=self._cost,
            first_step=first_step,
            number=len(self.parts),
            seen=seen,
        )
        self.parts = [*self.parts, Part(id, terms.recipe, selection, entry, table["key"], seen)]
        return self.parts[-1]

    def check_switch(self, recipe: RecipeConfig) -> None:
        """PlanError if `recipe` differs from the first one in what must stay the same."""
        first = self.parts[0].recipe
        fixed = ("units", "validation_samples", "validation_share")
        for name in fixed:
            old, new = getattr(first, name), getattr(recipe, name)
            if old != new:
                raise PlanError(
                    f"recipe.{name}: {new}, this training began with {old}; a switch of recipe cannot change "
                    f"{', '.join(fixed)}: begin a training anew for that"
                )

    def part(self, step: int) -> Part:
        """What makes `step`."""
        begins = [part.entry.first_step for part in self.parts]
        if step < begins[0]:
            raise PlanError(f"step {step}: the plan starts at step {begins[0]}")
        return self.parts[bisect_right(begins, step) - 1]

    def entry(self, step: int) -> Entry:
        """The compiled entry in force at `step`."""
        return self.part(step).entry

    def step(self, step: int) -> list[UnitPlan]:
        """The units of `step` by falling cost, as producer.api.deal expects them."""
        part = self.part(step)
        dealt = part.entry.deal(step)
        plans = []
        for number, group in enumerate(dealt.groups.tolist()):
            split, task, bucket, _, kind = part.entry.groups[group]
            rows = dealt.rows[dealt.starts[number] : dealt.starts[number + 1]]
            plans.append(UnitPlan(UnitId("train", step, number), bucket, split, task, rows, part.id, kind))
        return plans

    def passes(self, step: int) -> dict[str, float]:
        """How often each group, "split bucket", was gone through before `step`; an edit's task and a class between."""
        entry = self.entry(step)
        return dict(zip(map(_name, entry.groups), entry.passes(step).tolist(), strict=True))

    def seen(self, step: int) -> dict[str, np.ndarray]:
        """By split, the rows used in their group's open pass before `step`, of the last part: sorted, int64.

        Also rows that the part's recipe leaves out, as long as the group they would be in has not begun another pass.
        """
        part = self.parts[-1]
        found = part.entry.seen(step)
        passes = part.entry.passes(step)
        for split, rows in part.waiting.items():
            left_out = rows[~_used(part.selection, split, rows)]
            kept = left_out[~_over(part, split, passes, left_out)]
            found[split] = np.union1d(found.get(split, kept[:0]), kept)
        return found

    def cursors(self, step: int) -> str:
        """A hash of how far each group of the last part has come before `step`."""
        part = self.parts[-1]
        used, sizes = part.entry.used(step).tolist(), part.entry.sizes.tolist()
        groups = [
            [g.split, g.task, str(g.bucket), g.samples, size, int(old), count, *g.kind]
            for g, size, old, count in zip(part.entry.groups, sizes, part.entry.old, used, strict=True)
        ]
        return hashlib.sha256(json.dumps([ORDER, part.id, step, groups]).encode()).hexdigest()[:16]

    def imbalance(self, ranks: int, *, first: int = 0, steps: int = _WINDOW) -> float:
        """What the costliest of `ranks` data-parallel ranks does beyond the mean in the worst of `steps` steps.

        0.05: five percent more FLOPs, so the others wait for that share of a step. DealError if `ranks` does not
        divide the step's units.
        """
        shares = np.asarray([deal(self.units, ranks, rank) for rank in range(ranks)])
        worst = 0.0
        for step in range(first, first + steps):
            costs = self.entry(step).deal(step).costs[shares].sum(axis=1)
            worst = max(worst, float(costs.max() / costs.mean()) - 1)
        return worst

    def check(self, ranks: int, *, first: int = 0) -> float:
        """The predicted imbalance of `ranks` data-parallel ranks from step `first` on; PlanError above the limit."""
        found, limit = self.imbalance(ranks, first=first), self.part(first).recipe.max_imbalance
        if found > limit:
            raise PlanError(
                f"recipe.max_imbalance: the costliest of {ranks} ranks is predicted {found:.1%} above the mean, the "
                f"limit is {limit:.1%}; use fewer ranks, more units a step, narrower captions, or raise the limit"
            )
        return found


def _identity(index: str, recipe: RecipeConfig, seed: int, cost: CostModel) -> str:
    made_from = [ORDER, index, recipe.identity(), seed, cost]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def _name(group: Group) -> str:
    return " ".join([group.split, *([] if group.task == T2I else [group.task]), *group.kind, str(group.bucket)])


def _over(part: Part, split: str, passes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Which of `rows` are of a group of `split` that has begun another pass; without a bucket or class, of none."""
    selection, buckets = part.selection, part.selection.buckets
    kinds = ((),) if selection.classes is None else selection.classes.names
    over = np.zeros((2, len(kinds) + 1, len(buckets) + 1), bool)
    for group, count in zip(part.entry.groups, passes.tolist(), strict=True):
        if group.split == split and count >= 1:
            over[int(group.task != T2I), kinds.index(group.kind), buckets.index(group.bucket)] = True
    edits = (~selection.of_task(T2I)[rows]).astype(np.int64)
    kind = 0 if selection.classes is None else selection.classes.row[rows]
    return np.asarray(over[edits, kind, selection.bucket[rows]])


def _used(selection: Selection, split: str, rows: np.ndarray) -> np.ndarray:
    """Which of `rows` the selection trains on with `split`."""
    if split not in selection.splits:
        return np.zeros(len(rows), bool)
    return (selection.tokens[selection.splits.index(split), rows] >= 0) & ~selection.held_out[rows]


def _rows(keys: pa.ChunkedArray, others: pa.ChunkedArray) -> np.ndarray:
    """Where each of `keys` is among `others`, -1 where it is not: int64. Linear in both."""
    return np.asarray(pc.fill_null(pc.index_in(keys, value_set=others), -1), np.int64)


def _moved(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    found = places[rows]
    return np.sort(found[found >= 0])


def _validation(selection: Selection, recipe: RecipeConfig, cost: CostModel, plan: str) -> tuple[UnitPlan, ...]:
    """Every held-out sample once, with its caption of the first split that has one; the last units may be short."""
    rows = selection.validation
    if not len(rows):
        return ()
    split = (selection.tokens[:, rows] >= 0).argmax(axis=0)
    tokens = selection.tokens[split, rows]
    if selection.references is not None:
        tokens = tokens + selection.references[rows]
    found = []
    for task, (index, name) in product(sorted(recipe.tasks), enumerate(selection.splits)):
        sizes, alike = unit_sizes(selection, recipe, cost, task), selection.of_task(task)[rows]
        for number, bucket in enumerate(selection.buckets):
            mine = (split == index) & (selection.bucket[rows] == number) & alike
            order = np.flatnonzero(mine)[np.argsort(-tokens[mine], kind="stable")]
            for part in np.split(order, range(sizes[number], len(order), sizes[number])):
                if len(part):
                    total = int(cost(np.asarray(bucket.tokens), tokens[part]).sum())
                    found.append((total, bucket, name, task, rows[part]))
    found.sort(key=lambda unit: -unit[0])
    return tuple(
        UnitPlan(UnitId("validation", 0, number), bucket, name, task, part, plan)
        for number, (_, bucket, name, task, part) in enumerate(found)
    )
