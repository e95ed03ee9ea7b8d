"""A plan over rows made without chance, and a hash of its order: the same in every process, for ever."""

import hashlib
from collections.abc import Sequence

import numpy as np

from producer.cost import CostModel
from producer.plan import Plan, UnitPlan
from producer.recipe import RecipeConfig
from tests.unit.producer.rows import table


def fixed_plan() -> Plan:
    rows = 700
    number = np.arange(rows)
    captions = [
        [{"split": "raw", "text": "", "tokens": 20 + n * 7919 % 300, "kept": True}]
        + ([{"split": "fused", "text": "", "tokens": 50 + n * 104729 % 500, "kept": True}] if n % 3 else [])
        for n in range(rows)
    ]
    sizes = {"width": (300 + number * 31 % 1100).astype(np.int32), "height": (300 + number * 57 % 900).astype(np.int32)}
    recipe = RecipeConfig(
        resolutions=(256, 640),
        aspects=("1:1", "3:2"),
        splits={"raw": 0.3, "fused": 0.7},
        units=8,
        samples=6,
        validation_samples=30,
    )
    return Plan("fixed", table(rows, captions=captions, **sizes), recipe, seed=11, cost=CostModel(40, 2))


def content(units: Sequence[UnitPlan]) -> list[tuple[object, ...]]:
    """All of each unit, as plain values that compare."""
    return [(unit.unit, unit.bucket, unit.split, unit.task, unit.rows.tolist()) for unit in units]


def digest(plan: Plan) -> str:
    """A hash of some steps, near and far, and of the validation units."""
    found = hashlib.sha256()
    for units in [*(plan.step(step) for step in (0, 1, 2, 63, 100_000)), plan.validation]:
        found.update(repr(content(units)).encode())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    print(fixed_plan().id, digest(fixed_plan()))
