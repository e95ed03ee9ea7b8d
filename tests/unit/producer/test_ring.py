"""The ring of encoded units of a worker: bounded in bytes, and never in the way of the unit that is needed next."""

from pathlib import Path

from producer.coordinator import Limits
from producer.synthetic import SyntheticMaker
from tests.unit.producer.farm import JOB, Farm, farm, schedule, settled, train

LIMITS = Limits(horizon_bytes=10**9, heartbeat_s=0.05, lease_s=20.0)
UNIT = SyntheticMaker(JOB)(train(0, 0))[0].nbytes
ROOM = 20 * UNIT


def held_bytes(running: Farm) -> int:
    """The bytes that the farm's worker holds once it has nothing to make."""
    (worker,) = running.workers
    settled(running)
    return worker._ring.list()[1]


def test_a_trainer_that_stands_still_lets_a_worker_fill_its_ring_and_no_more(tmp_path: Path) -> None:
    with farm(tmp_path, limits=LIMITS) as running:
        running.worker("w0", memory_bytes=ROOM)
        running.source().hello(0)
        assert 0.8 * ROOM < held_bytes(running) <= 1.1 * ROOM


def test_a_ring_full_of_units_that_a_trainer_may_go_back_to_lets_them_go_for_those_ahead(tmp_path: Path) -> None:
    with farm(tmp_path, limits=LIMITS) as running:
        worker = running.worker("w0", memory_bytes=ROOM)
        source = running.source()
        source.hello(0)
        source.follow(schedule, 0, 40)
        most = 0
        for step in range(40):
            for unit in schedule(step):
                source.next_unit(unit)
            most = max(most, worker._ring.list()[1])
        assert most <= 1.1 * ROOM


def test_what_someone_waits_for_takes_the_place_of_what_is_needed_last(tmp_path: Path) -> None:
    with farm(tmp_path, limits=LIMITS) as running:
        worker = running.worker("w0", memory_bytes=ROOM)
        running.source().hello(100)
        held_bytes(running)
        held = [unit.step for unit in worker._ring.list()[0] if unit.stream == "train"]
        back = running.source(trainer="u")
        back.hello(0)
        assert back.fetch(train(0, 0)).num_rows == JOB.samples
        assert held_bytes(running) <= 1.1 * ROOM
        left = [unit.step for unit in worker._ring.list()[0] if unit.stream == "train"]
        assert {0, 100} <= set(left) and left.count(100) == held.count(100)
