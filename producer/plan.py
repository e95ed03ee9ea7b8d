"""The plan: step n to units to samples, a pure function of the index, the recipe, the seed and n.

Every worker computes it alone; nobody records it. A trainer that restarts, on any number of ranks, asks for step n and
gets the same samples.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from producer.api.bucket import Bucket
from producer.api.deal import deal
from producer.api.unit import UnitId
from producer.cost import CostModel
from producer.entry import Entry, compile_entry, unit_sizes
from producer.recipe import RecipeConfig, Selection, select

# Counts up with every change that makes another order of the same inputs, so that two releases never mix their units.
ORDER = 1

# Steps that the imbalance is predicted over.
_WINDOW = 64


class PlanError(ValueError):
    """The plan does not suit the ranks that are to train by it."""


@dataclass(frozen=True, eq=False)
class UnitPlan:
    """What goes into a unit: `rows` are row numbers of the index's table, and `split` says which caption."""

    unit: UnitId
    bucket: Bucket
    split: str
    task: str
    rows: np.ndarray


class Plan:
    """The units of every step. `units` of them make a step, and `selection` says what was taken from the index."""

    def __init__(self, index: str, table: pa.Table, recipe: RecipeConfig, *, seed: int, cost: CostModel) -> None:
        """The plan over the index generation called `index` with rows `table`.

        RecipeError says why a recipe does not fit them.
        """
        self.id = _identity(index, recipe, seed, cost)
        self.units = recipe.units
        self.selection = select(table, recipe)
        self._recipe, self._cost = recipe, cost
        # A journal of one entry: a switch of recipe will append another.
        self._entry = compile_entry(self.selection, recipe, seed=seed, cost=cost)
        self.validation = _validation(self.selection, unit_sizes(self.selection, recipe, cost), cost)

    def entry(self, step: int) -> Entry:
        """The journal's entry in force at `step`."""
        if step < self._entry.first_step:
            raise PlanError(f"step {step}: the plan starts at step {self._entry.first_step}")
        return self._entry

    def step(self, step: int) -> list[UnitPlan]:
        """The units of `step` by falling cost, as producer.api.deal expects them."""
        entry = self.entry(step)
        dealt = entry.deal(step)
        plans = []
        for number, group in enumerate(dealt.groups.tolist()):
            split, task, bucket, _ = entry.groups[group]
            rows = dealt.rows[dealt.starts[number] : dealt.starts[number + 1]]
            plans.append(UnitPlan(UnitId("train", step, number), bucket, split, task, rows))
        return plans

    def passes(self, step: int) -> dict[str, float]:
        """How often each group, written "split bucket", was gone through before `step`."""
        entry = self.entry(step)
        counts = entry.passes(step).tolist()
        return {f"{g.split} {g.bucket}": count for g, count in zip(entry.groups, counts, strict=True)}

    def seen(self, step: int) -> dict[str, np.ndarray]:
        """By split, the rows used in their group's open pass before `step`."""
        return self.entry(step).seen(step)

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

    def check(self, ranks: int) -> float:
        """The predicted imbalance of `ranks` data-parallel ranks; PlanError above the recipe's limit."""
        found, limit = self.imbalance(ranks), self._recipe.max_imbalance
        if found > limit:
            raise PlanError(
                f"recipe.max_imbalance: the costliest of {ranks} ranks is predicted {found:.1%} above the mean, the "
                f"limit is {limit:.1%}; use fewer ranks, more units a step, narrower captions, or raise the limit"
            )
        return found


def _identity(index: str, recipe: RecipeConfig, seed: int, cost: CostModel) -> str:
    made_from = [ORDER, index, recipe.model_dump(mode="json"), seed, cost]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def _validation(selection: Selection, sizes: list[int], cost: CostModel) -> tuple[UnitPlan, ...]:
    """Every held-out sample once, with its caption of the first split that has one; the last units may be short."""
    rows = selection.validation
    if not len(rows):
        return ()
    split = (selection.tokens[:, rows] >= 0).argmax(axis=0)
    tokens = selection.tokens[split, rows]
    found = []
    for index, name in enumerate(selection.splits):
        for number, bucket in enumerate(selection.buckets):
            mine = (split == index) & (selection.bucket[rows] == number)
            order = np.flatnonzero(mine)[np.argsort(-tokens[mine], kind="stable")]
            for part in np.split(order, range(sizes[number], len(order), sizes[number])):
                if len(part):
                    total = int(cost(np.asarray(bucket.tokens), tokens[part]).sum())
                    found.append((total, bucket, name, rows[part]))
    found.sort(key=lambda unit: -unit[0])
    return tuple(
        UnitPlan(UnitId("validation", 0, number), bucket, name, "t2i", part)
        for number, (_, bucket, name, part) in enumerate(found)
    )
