"""How long a plan takes: printed, not asserted. Run with `make bench`."""

import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from producer.cost import CostModel
from producer.entry import _turns, compile_entry
from producer.plan import _rows
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


class Watched(np.ndarray):
    """Notes which places are read."""

    places: ClassVar[list[np.ndarray]] = []

    def __getitem__(self, key: object) -> object:
        Watched.places.append(np.asarray(key[-1] if isinstance(key, tuple) else key).ravel())
        return np.asarray(self)[key]


def anonymous() -> float:
    """MiB of this process that no file backs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def test_time_of_a_step_of_4096_samples_of_a_billion_rows_on_disk(tmp_path: Path) -> None:
    """The rows lie in files with holes, filled where the steps read: warm pages, without 12 GB of disk."""
    count = 10**9
    recipe = RecipeConfig(units=256, samples=16)
    small = compile_entry(drawn(10**6, recipe), recipe, seed=1, cost=COST)
    before = anonymous()
    rows = np.memmap(tmp_path / "rows", np.int64, "w+", shape=(count,))
    tokens = np.memmap(tmp_path / "tokens", np.int32, "w+", shape=(1, count))
    turns = _turns(small.sizes * 1000, small.lanes * small.samples)
    entry = replace(
        small,
        rows=rows.view(Watched),
        tokens=tokens,
        starts=small.starts * 1000,
        turn=-(-small.sizes * 1000 // turns),
    )
    draw = np.random.default_rng(1)
    steps = draw.integers(0, 10**6, 8).tolist()
    for step in steps:
        entry.deal(step)
    read = np.unique(np.concatenate(Watched.places))
    rows[read] = draw.integers(0, count, len(read))
    tokens[0, rows[read]] = np.clip(draw.lognormal(4.9, 0.35, len(read)), 4, 1000)
    entry = replace(entry, rows=np.asarray(rows), tokens=np.asarray(tokens))
    rehearsed = [len(np.unique(entry.deal(step).rows)) for step in steps]
    start = time.process_time()
    for step in steps:
        entry.deal(step)
    each = (time.process_time() - start) / len(steps)
    assert min(rehearsed) > 4000
    print(
        f"\n10^9 rows: a step of 4,096 in {each * 1e3:.2f} ms of CPU, warm; +{anonymous() - before:.0f} MiB anonymous"
    )


def test_time_of_compiling_twenty_million_rows_and_of_a_switch() -> None:
    recipe = RecipeConfig(units=256, samples=16)
    selection = drawn(2 * 10**7, recipe)
    start = time.process_time()
    entry = compile_entry(selection, recipe, seed=1, cost=COST)
    compiled = time.process_time() - start
    start = time.process_time()
    seen = entry.seen(2000)
    compile_entry(selection, recipe, seed=1, cost=COST, first_step=2000, number=1, seen=seen)
    print(
        f"\n2 x 10^7 rows: compiled in {compiled:.1f} s of CPU; again in mid-pass {time.process_time() - start:.1f} s"
    )


def test_time_of_finding_a_million_rows_in_a_grown_index() -> None:
    keys = pa.chunked_array([[f"shard-{row // 1000:06d}/{row:09d}" for row in range(1_500_000)]])
    start = time.process_time()
    places = _rows(keys.take(pa.array(np.flatnonzero(np.arange(1_500_000) % 3 > 0))), keys)
    print(f"\n10^6 keys among 1.5 x 10^6: {time.process_time() - start:.2f} s of CPU")
    assert places[1] == 2


def test_time_of_selecting_a_million_rows() -> None:
    rows = table(10**6, splits=("raw", "fused"))
    recipe = RecipeConfig(resolutions=(256, 640), splits={"raw": 1.0, "fused": 1.0}, validation_share=0.01)
    start = time.process_time()
    select(rows, recipe)
    print(f"\n10^6 rows with two captions each: selected in {time.process_time() - start:.2f} s of CPU")
