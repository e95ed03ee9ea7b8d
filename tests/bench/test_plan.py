"""How long a plan takes: printed, not asserted. Run with `make bench`."""

import resource
import time

import numpy as np

from producer.cost import CostModel
from producer.entry import compile_entry
from producer.recipe import RecipeConfig, Selection, select
from tests.unit.producer.rows import table

COST = CostModel(40_768_634_880, 2_211_840)


def drawn(rows: int, recipe: RecipeConfig) -> Selection:
    """A selection as if from an index of `rows`, in all buckets alike."""
    draw = np.random.default_rng(0)
    buckets = tuple(bucket for size in recipe.resolutions for bucket in recipe.buckets(size))
    return Selection(
        buckets=buckets,
        bucket=draw.integers(0, len(buckets), rows).astype(np.int16),
        splits=tuple(recipe.splits),
        tokens=np.clip(draw.lognormal(4.9, 0.35, (len(recipe.splits), rows)), 4, 1000).astype(np.int32),
        held_out=np.zeros(rows, bool),
        validation=np.zeros(0, np.int64),
        held_below=0,
        counts={},
    )


def test_time_of_a_step_of_4096_samples_of_ten_million_rows() -> None:
    recipe = RecipeConfig(units=256, samples=16)
    selection = drawn(10**7, recipe)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    entry = compile_entry(selection, recipe, seed=1, cost=COST)
    compiled = time.process_time() - start
    rows = entry.deal(0).rows
    assert len(rows) == 4096
    steps = np.random.default_rng(1).integers(0, 10**6, 50).tolist()
    start = time.process_time()
    for step in steps:
        entry.deal(step)
    each = (time.process_time() - start) / len(steps)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\n10^7 rows: compiled in {compiled:.2f} s of CPU, +{grown:.0f} MiB at most; a step in {each * 1e3:.2f} ms")


def test_time_of_selecting_a_million_rows() -> None:
    rows = table(10**6, splits=("raw", "fused"))
    recipe = RecipeConfig(resolutions=(256, 640), splits={"raw": 1.0, "fused": 1.0}, validation_share=0.01)
    start = time.process_time()
    select(rows, recipe)
    print(f"\n10^6 rows with two captions each: selected in {time.process_time() - start:.2f} s of CPU")
