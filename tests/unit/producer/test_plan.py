"""Order is a function: of the index, the recipe, the seed and the step, and of nothing else."""

import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import MMDiTConfig
from model.count import training_flops
from producer.api.bucket import ASPECTS, Bucket
from producer.api.deal import DealError, deal
from producer.api.unit import UnitId
from producer.cost import CostModel
from producer.plan import Plan, PlanError
from producer.recipe import RecipeConfig
from tests.unit.producer.fixed import content, digest, fixed_plan
from tests.unit.producer.rows import table

ROOT = Path(__file__).parents[3]
RELEASED = MMDiTConfig()
COST = CostModel.of(RELEASED)
TWO_SPLITS = {"raw": 0.3, "fused": 0.7}


@cache
def photographs(rows: int, splits: tuple[str, ...] = ("raw",)) -> pa.Table:
    return table(rows, splits=splits)


def plan_of(rows: int = 600, *, seed: int = 1, **recipe: object) -> Plan:
    config = RecipeConfig(**{"min_fill": 0.3, **recipe})
    return Plan("index", photographs(rows, tuple(config.splits)), config, seed=seed, cost=COST)


def groups_of(plan: Plan) -> dict[tuple[str, Bucket], set[int]]:
    """Which rows train in each split and bucket."""
    chosen, found = plan.selection, {}
    for number, split in enumerate(chosen.splits):
        for row in np.flatnonzero((chosen.tokens[number] >= 0) & ~chosen.held_out).tolist():
            found.setdefault((split, chosen.buckets[chosen.bucket[row]]), set()).add(row)
    return found


@given(
    rows=st.integers(2, 150),
    samples=st.integers(1, 20),
    units=st.integers(1, 6),
    shapes=st.integers(1, 9),
    splits=st.sampled_from([{"raw": 1.0}, TWO_SPLITS]),
)
def test_every_sample_comes_once_in_each_pass_of_its_group(
    rows: int, samples: int, units: int, shapes: int, splits: dict[str, float]
) -> None:
    plan = plan_of(rows, splits=splits, samples=samples, units=units, aspects=ASPECTS[:shapes])
    groups, entry = groups_of(plan), plan.entry(0)
    assert {(group.split, group.bucket) for group in entry.groups} == set(groups), "a group was dropped"
    seen = {name: Counter[int]() for name in groups}
    for step in range(50):
        for unit in plan.step(step):
            name, members = (unit.split, unit.bucket), groups[unit.split, unit.bucket]
            assert len(unit.rows) == samples and set(unit.rows.tolist()) <= members
            if len(members) >= samples:
                assert len(set(unit.rows.tolist())) == samples, "a row twice in a unit that its group could fill"
            seen[name].update(unit.rows.tolist())
        used, lanes = entry.used(step + 1).tolist(), entry.lanes.tolist()
        for number, group in enumerate(entry.groups):
            counts = [seen[group.split, group.bucket][row] for row in groups[group.split, group.bucket]]
            assert sum(counts) == used[number] * samples
            # Units of a stretch are dealt from all of it: while it is open, some of it may be missing.
            assert max(counts) - min(counts) <= (1 if used[number] % lanes[number] == 0 else 2)


def test_passes_that_end_with_a_stretch_hold_every_sample_exactly_once() -> None:
    rows = 1024
    square = table(rows, width=[256] * rows, height=[256] * rows)
    plan = Plan("index", square, RecipeConfig(units=4, samples=4), seed=5, cost=COST)
    handed = [row for step in range(3 * 64) for unit in plan.step(step) for row in unit.rows.tolist()]
    passes = [handed[start : start + rows] for start in range(0, 3 * rows, rows)]
    assert [sorted(each) for each in passes] == [list(range(rows))] * 3
    assert passes[0] != passes[1] != passes[2]
    assert list(plan.passes(128).values()) == [2.0]


def test_a_group_smaller_than_a_unit_fills_it_by_repeating() -> None:
    plan = plan_of(3, samples=8, units=2, aspects=("1:1",))
    for step in range(20):
        for unit in plan.step(step):
            counts = Counter(unit.rows.tolist())
            assert sum(counts.values()) == 8 and set(counts) == {0, 1, 2}
            assert max(counts.values()) - min(counts.values()) <= 2


def test_a_step_is_the_same_whatever_was_asked_before() -> None:
    first, second = plan_of(splits=TWO_SPLITS), plan_of(splits=TWO_SPLITS)
    steps = [0, 7, 1, 100_003, 7, 2, 10**9]
    forth = {step: content(first.step(step)) for step in steps}
    back = {step: content(second.step(step)) for step in reversed(steps)}
    assert forth == back
    assert [unit[0] for unit in forth[7]] == [UnitId("train", 7, number) for number in range(first.units)]


def test_every_number_of_ranks_gets_the_same_global_batches() -> None:
    plan = plan_of(units=12)
    for step in range(5):
        whole = content(plan.step(step))
        for ranks in (1, 2, 3, 4, 6, 12):
            shares = [[whole[unit] for unit in deal(plan.units, ranks, rank)] for rank in range(ranks)]
            assert sorted(unit for share in shares for unit in share) == sorted(whole)


def test_units_come_by_falling_cost() -> None:
    plan = plan_of(2000, resolutions=(256, 640), min_fill=0.9, samples=8, units=24)
    tokens = plan.selection.tokens[0]
    for step in range(10):
        costs = [int(COST(np.asarray(unit.bucket.tokens), tokens[unit.rows]).sum()) for unit in plan.step(step)]
        assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("samples", [4, 16])
def test_the_mixture_is_within_a_point_in_any_ten_thousand_samples(samples: int) -> None:
    weights = {"raw": 0.5, "recaption": 0.3, "fused": 0.15, "short": 0.05}
    plan = plan_of(5000, splits=weights, resolutions=(256, 640), min_fill=0.9, units=64, samples=samples)
    steps = 150
    handed = np.zeros((steps, len(weights)))
    for step in range(steps):
        for unit in plan.step(step):
            handed[step, list(weights).index(unit.split)] += len(unit.rows)
    sums = np.concatenate([np.zeros((1, len(weights))), np.cumsum(handed, axis=0)])
    ends = np.searchsorted(sums.sum(axis=1), sums.sum(axis=1) + 10_000)
    windows = [sums[end] - sums[start] for start, end in enumerate(ends) if end <= steps]
    shares = np.asarray([window / window.sum() for window in windows])
    assert len(shares) > 20
    assert np.abs(shares - list(weights.values())).max() < 0.01


def test_samples_of_a_split_are_equally_likely_in_all_buckets() -> None:
    plan = plan_of(4000, resolutions=(256, 640), min_fill=0.9, samples=8, units=32)
    passes = plan.passes(2000)
    assert min(passes.values()) > 5
    assert max(passes.values()) / min(passes.values()) < 1.02


def test_held_out_samples_are_validated_once_and_never_trained() -> None:
    plan = plan_of(500, splits=TWO_SPLITS, validation_samples=60, samples=7)
    held = set(plan.selection.validation.tolist())
    assert len(held) == 60
    assert sorted(row for unit in plan.validation for row in unit.rows.tolist()) == sorted(held)
    assert [unit.unit for unit in plan.validation] == [
        UnitId("validation", 0, number) for number in range(len(plan.validation))
    ]
    for unit in plan.validation:
        assert len(unit.rows) <= 7
        assert {plan.selection.buckets[b] for b in plan.selection.bucket[unit.rows]} == {unit.bucket}
    trained = {row for step in range(200) for unit in plan.step(step) for row in unit.rows.tolist()}
    assert not trained & held and len(trained) == 440


def test_larger_resolutions_have_smaller_units_of_about_one_cost() -> None:
    plan = plan_of(3000, resolutions=(256, 640, 1328), min_fill=0.5, samples=64)
    sizes = {256: set(), 640: set(), 1328: set()}
    for group in plan.entry(0).groups:
        resolution = min(sizes, key=lambda size: abs(size**2 - group.bucket.height * group.bucket.width))
        sizes[resolution].add(group.samples)
    [small], [middle], [large] = sizes[256], sizes[640], sizes[1328]
    mean = int(plan.selection.tokens.mean())
    each = [training_flops(RELEASED, image, mean) for image in (256, 1600, 6889)]
    assert small == 64 and large < middle < small
    assert middle * each[1] == pytest.approx(small * each[0], rel=0.05)
    assert large * each[2] == pytest.approx(small * each[0], rel=0.25)
    tiny = plan_of(3000, resolutions=(256, 1328), min_fill=0.5, samples=2)
    assert {group.samples for group in tiny.entry(0).groups} == {2, 1}


@pytest.mark.parametrize(
    ("recipe", "ranks"),
    [
        ({"resolutions": (256,), "samples": 16, "units": 64}, 16),
        ({"resolutions": (256,), "samples": 64, "units": 16}, 16),
        ({"resolutions": (640,), "min_fill": 0.05, "samples": 8, "units": 64}, 32),
        ({"resolutions": (256, 640), "min_fill": 0.9, "samples": 64, "units": 64}, 16),
        ({"resolutions": (1328,), "min_fill": 0.01, "samples": 1, "units": 64}, 32),
    ],
)
def test_ranks_do_the_same_flops_within_five_percent(recipe: dict[str, object], ranks: int) -> None:
    plan = plan_of(20_000, **recipe)
    tokens = plan.selection.tokens[0].astype(np.int64)
    for step in range(20):
        units = plan.step(step)
        costs = [int(training_flops(RELEASED, unit.bucket.tokens, tokens[unit.rows]).sum()) for unit in units]
        sums = [sum(costs[unit] for unit in deal(plan.units, ranks, rank)) for rank in range(ranks)]
        assert max(sums) / min(sums) < 1.05


def test_the_imbalance_is_predicted_and_refused_above_the_limit() -> None:
    plan = plan_of(2000, resolutions=(1328,), min_fill=0.01, samples=1, units=8, max_imbalance=0.01)
    assert plan.imbalance(1) == 0.0
    found = plan.imbalance(8)
    costs = [plan.entry(0).deal(step).costs for step in range(64)]
    assert found == pytest.approx(max(float(step.max() / step.mean()) for step in costs) - 1)
    assert 0.05 < found < 0.3 and plan.imbalance(4) < found
    assert plan.check(1) == 0.0
    with pytest.raises(PlanError, match=r"recipe\.max_imbalance: .* 8 ranks is predicted .* the limit is 1\.0%"):
        plan.check(8)
    with pytest.raises(DealError, match="5 data-parallel ranks"):
        plan.check(5)


def test_a_step_before_the_first_is_refused() -> None:
    with pytest.raises(PlanError, match="step -1"):
        plan_of().step(-1)


def test_the_id_is_of_everything_that_the_order_follows_from() -> None:
    rows, recipe = photographs(50), RecipeConfig(min_fill=0.3)

    def identity(index: str = "a", recipe: RecipeConfig = recipe, seed: int = 1, cost: CostModel = COST) -> str:
        return Plan(index, rows, recipe, seed=seed, cost=cost).id

    others = [
        identity("b"),
        identity(recipe=recipe.model_copy(update={"samples": 3})),
        identity(seed=2),
        identity(cost=CostModel(1, 1)),
    ]
    assert len({identity(), *others}) == 5 and identity() == identity()


def test_another_seed_is_another_order_of_the_same_samples() -> None:
    one, two = plan_of(seed=1), plan_of(seed=2)
    assert groups_of(one) == groups_of(two)
    assert [unit.rows.tolist() for unit in one.step(0)] != [unit.rows.tolist() for unit in two.step(0)]


def test_other_processes_with_other_hash_seeds_compute_the_same_steps() -> None:
    plan = fixed_plan()
    for seed in ("1", "2"):
        said = subprocess.run(
            [sys.executable, "-W", "error", "-m", "tests.unit.producer.fixed"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert said.stdout.split() == [plan.id, digest(plan)], said.stderr


def test_the_order_is_the_one_that_running_trainings_follow() -> None:
    # Another hash is another order: then producer.plan.ORDER must change too.
    assert digest(fixed_plan()) == "9232781ed8020c9f"
