"""Order is a function of the step: from any state, for any number of producers and ranks, after any wait."""

import random
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from producer.api.bucket import Bucket
from producer.api.unit import UnitId, unpack
from producer.coordinator import Limits
from producer.index import Index
from producer.plan import Plan
from tests.chaos.maker import COST, SEED, ChaosMaker, Job, told, write_index
from tests.chaos.plane import PREFETCH, Plane, plane
from tests.unit.producer.fixed import content

STEPS = 300
LIMITS = Limits(horizon_bytes=400_000, heartbeat_s=0.1, lease_s=20.0)
Given = list[dict[str, Any]]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Two buckets and two caption splits, with samples that cannot be encoded."""
    folder = tmp_path_factory.mktemp("order")
    write_index(folder / "index", 512, square=False)
    return Job(index=folder / "index", disk=folder / "disk", aspects=("1:1", "3:2"), cache_bytes=32 << 20)


def by_step(running: Plane, first: int, end: int) -> Given:
    """Of each step, what its units hold, in the plan's order of units."""
    return [
        {
            str(unit): given
            for unit, given in sorted((header_unit(batch), told(batch)) for group in step for batch in group)
        }
        for step in running.steps(first, end)
    ]


def header_unit(batch: pa.RecordBatch) -> UnitId:
    return unpack(batch)[0].unit


def undisturbed(maker: ChaosMaker, first: int, end: int) -> Given:
    units = [[UnitId("train", step, unit) for unit in range(maker.job.units)] for step in range(first, end)]
    return [{str(unit): told(maker(unit)[0]) for unit in step} for step in units]


def test_every_state_of_three_hundred_has_the_same_plan_ahead(job: Job) -> None:
    index = Index.open(job.index)

    def fresh() -> Plan:
        return Plan(index.id, index.table, job.recipe, seed=SEED, cost=COST)

    plan = fresh()
    reference = [content(plan.step(step)) for step in range(STEPS)]
    assert all(before != after for before, after in pairwise(reference))
    for start in range(STEPS):
        resumed = fresh()
        for step in {start, min(start + 1, STEPS - 1), (start + STEPS) // 2, STEPS - 1}:
            assert content(resumed.step(step)) == reference[step], f"resumed at {start}, step {step}"


def resume(job: Job, folder: Path, starts: list[int], steps: int) -> None:
    """Pull `steps` steps from each of `starts`, and compare all of them to what an undisturbed training is given."""
    with plane(folder, job, LIMITS) as running:
        running.staff(["w0", "w1"])
        for start in starts:
            end = min(start + steps, STEPS)
            running.start(start, end, groups=1 + start % 2)
            assert by_step(running, start, end) == undisturbed(running.maker, start, end), f"resumed at {start}"


def test_ten_states_have_the_same_samples_and_bits_ahead(job: Job, tmp_path: Path) -> None:
    resume(job, tmp_path, random.Random(14).sample(range(STEPS), 10), steps=4)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_state_of_three_hundred_has_the_same_samples_and_bits_ahead(job: Job, tmp_path: Path) -> None:
    resume(job, tmp_path, list(range(STEPS)), steps=10)
    resume(job, tmp_path, random.Random(14).sample(range(STEPS), 5), steps=STEPS)


def test_producers_and_ranks_in_any_number_share_the_same_equal_steps(tmp_path: Path) -> None:
    write_index(tmp_path / "index", 4096, square=False)
    large = Job(
        index=tmp_path / "index",
        disk=tmp_path / "disk",
        units=8,
        samples=16,
        resolutions=(256,),
        aspects=("1:1", "3:2", "2:3"),
        bad=0,
        cache_bytes=0,
    )
    given: Given = []
    with plane(tmp_path, large, Limits(horizon_bytes=6 << 20, heartbeat_s=0.1, lease_s=20.0)) as running:
        for workers, groups in ((1, 8), (5, 4), (2, 2)):
            running.staff([f"w{number}" for number in range(workers)])
            first = len(given)
            running.start(first, first + 3, groups)
            for step in running.steps(first, first + 3):
                costs = [sum(map(cost, group)) for group in step]
                assert max(costs) / min(costs) < 1.05, f"step {len(given)}: {costs}"
                given.append({str(header_unit(batch)): told(batch) for group in step for batch in group})
        assert given == undisturbed(running.maker, 0, 9)


def cost(batch: pa.RecordBatch) -> int:
    """What a unit costs to train."""
    samples = unpack(batch)[1]
    image = [Bucket(sample.latent.height, sample.latent.width).tokens for sample in samples]
    return int(COST(np.asarray(image), np.asarray([len(sample.text) for sample in samples])).sum())


def stall(job: Job, folder: Path, seconds: float) -> None:
    """A trainer that stands still for so long; what is in flight meanwhile, and what it is given afterwards."""
    with plane(folder, job, LIMITS) as running:
        running.staff(["w0", "w1"])
        running.start(0, 20, groups=2)
        before = by_step(running, 0, 5)
        largest = max(running.maker(UnitId("train", step, 0))[0].nbytes for step in range(20))
        kept = sum(running.maker(unit)[0].nbytes for unit in running.server._rules.demand.kept)
        cap = LIMITS.horizon_bytes + 2 * PREFETCH * largest + kept
        end, most = time.monotonic() + seconds, 0
        while time.monotonic() < end or most < LIMITS.horizon_bytes / 2:
            held, pulled = running.held()
            most = max(most, held + pulled * largest)
            assert most <= 1.1 * cap, f"{most} bytes in flight, the limit is {cap}"
            assert time.monotonic() < end + 60, f"{most} bytes in flight, where there is room for {cap}"
            time.sleep(0.05)
        assert before + by_step(running, 5, 20) == undisturbed(running.maker, 0, 20)


def test_a_trainer_that_stands_still_is_not_drowned(job: Job, tmp_path: Path) -> None:
    stall(job, tmp_path, 3.0)


@pytest.mark.long
def test_a_trainer_that_stands_still_for_a_minute_is_not_drowned(job: Job, tmp_path: Path) -> None:
    stall(job, tmp_path, 60.0)
