"""Workers that hang, break or begin anew: their units go to others, and nothing old of theirs is believed."""

import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from consumer.source.flight import FlightSource
from producer.api.channel import RefusedError, UnreachableError
from producer.api.protocol import Hello, Lease
from producer.api.unit import UnitId
from producer.coordinator import Coordinator, Limits
from producer.synthetic import SyntheticMaker
from producer.worker import MakerBrokenError
from tests.unit.producer.farm import JOB, LIMITS, Farm, farm, settled, train, until

LATE = Limits(horizon_bytes=200_000, heartbeat_s=0.1, lease_s=30.0, late_s=1.0)


class Hanging(SyntheticMaker):
    """Its device hangs in one unit until it is let go."""

    def __init__(self, unit: UnitId) -> None:
        super().__init__(JOB)
        self.unit, self.hangs, self.free = unit, threading.Event(), threading.Event()

    def __call__(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
        if unit == self.unit:
            self.hangs.set()
            assert self.free.wait(120)
        return super().__call__(unit)


class Broken(SyntheticMaker):
    """Its device is lost in one unit."""

    def __init__(self, unit: UnitId) -> None:
        super().__init__(JOB)
        self.unit = unit

    def __call__(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
        if unit == self.unit:
            raise MakerBrokenError("the device failed")
        return super().__call__(unit)


def fetched(source: FlightSource, unit: UnitId) -> bytes:
    return source.fetch(unit).serialize().to_pybytes()


def made(unit: UnitId) -> bytes:
    return SyntheticMaker(JOB)(unit)[0].serialize().to_pybytes()


def status(running: Farm) -> dict[str, Any]:
    """The coordinator's, however busy the machine is."""
    for _ in range(20):
        with suppress(UnreachableError):
            return running.status()
    return running.status()


def port_of(address: str) -> int:
    found = re.search(r":(\d+)", address)
    assert found, address
    return int(found[1])


def holders(running: Farm, unit: UnitId) -> list[str]:
    return [worker.address for worker in running.workers if unit in worker._ring.list()[0]]


def test_a_unit_in_which_a_device_hangs_is_made_by_another_and_the_first_registration_wins(tmp_path: Path) -> None:
    with farm(tmp_path, limits=LATE) as running:
        maker = Hanging(train(1, 0))
        slow = running.worker("w0", maker)
        source = running.source(wait_s=60.0)
        source.hello(0)
        assert maker.hangs.wait(60)
        # The one that hangs still speaks: nobody has died.
        other = running.worker("w1")
        assert fetched(source, train(1, 0)) == made(train(1, 0))
        assert holders(running, train(1, 0)) == [other.address]
        assert fetched(source, train(1, 1)) == made(train(1, 1))
        maker.free.set()
        until(lambda: status(running)["refused"] > 0)
        until(lambda: slow.numbers()["units"] > 0 and slow._making is None)
        # What came second is forgotten, and its maker goes on with others.
        until(lambda: holders(running, train(1, 0)) == [other.address])
        assert status(running)["silenced"] == 0
        assert fetched(source, train(2, 0)) == made(train(2, 0))


def test_a_worker_that_hangs_for_long_gives_up_so_that_it_is_started_anew(tmp_path: Path) -> None:
    gone = threading.Event()
    with farm(tmp_path, limits=LATE) as running:
        maker = Hanging(train(0, 0))
        running.worker("w0", maker, stuck_s=0.5, give_up=gone.set)
        running.source().hello(0)
        assert maker.hangs.wait(60)
        assert gone.wait(60)
        maker.free.set()


def test_a_worker_whose_device_is_lost_says_so_and_gives_up(tmp_path: Path) -> None:
    gone = threading.Event()
    with farm(tmp_path, limits=LATE) as running:
        running.worker("w0", Broken(train(0, 1)), give_up=gone.set)
        source = running.source(wait_s=60.0)
        source.hello(0)
        assert gone.wait(60)
        until(lambda: status(running)["failed"] > 0)
        assert "MakerBrokenError" in status(running)["troubles"][str(train(0, 1))]
        running.worker("w1")
        assert fetched(source, train(0, 1)) == made(train(0, 1))


def test_a_worker_that_begins_anew_at_the_same_address_is_not_believed_to_hold_what_it_held(tmp_path: Path) -> None:
    with farm(tmp_path, limits=LATE) as running:
        first = running.worker("w0")
        source = running.source(wait_s=60.0)
        source.hello(0)
        settled(running)
        port = port_of(first.address)
        running.workers.remove(first)
        first.stop()
        second = running.worker("w0", port=port)
        assert port_of(second.address) == port
        until(lambda: status(running)["silenced"] == 1)
        assert fetched(source, train(0, 0)) == made(train(0, 0))
        assert status(running)["lost"] == 0


def test_an_older_start_of_a_worker_is_refused_as_long_as_the_newer_one_lives(tmp_path: Path) -> None:
    with farm(tmp_path, limits=LATE) as running:
        old = running.worker("w0")
        source = running.source(wait_s=60.0)
        source.hello(0)
        settled(running)
        new = running.worker("w0")
        until(lambda: status(running)["silenced"] == 1)
        assert fetched(source, train(0, 0)) == made(train(0, 0))
        until(lambda: holders(running, train(0, 0))[-1:] == [new.address])
        # The old one goes on speaking, and is not heard.
        time.sleep(1.0)
        assert status(running)["silenced"] == 1
        assert old.address != new.address
        assert fetched(source, train(0, 1)) == made(train(0, 1))


def test_what_workers_count_is_in_the_coordinators_status(tmp_path: Path) -> None:
    class Counting(SyntheticMaker):
        def numbers(self) -> dict[str, float]:
            return {"decode_seconds": 1.5, "decode_samples": 3}

    with farm(tmp_path, limits=LATE) as running:
        worker = running.worker("w0", Counting(JOB))
        running.source().hello(0)
        until(lambda: status(running)["numbers"].get("w0", {}).get("units", 0) > 0)
        said = status(running)["numbers"]["w0"]
        assert said.keys() == worker.numbers().keys()
        assert said.keys() >= {"units", "samples", "failed", "making_seconds", "idle_seconds", "decode_seconds"}
        assert said["decode_seconds"] == 1.5
        assert said["making_seconds"] + said["idle_seconds"] > 0


def lease(name: str, incarnation: int, room: int = 0, address: str = "a:0", **over: object) -> Lease:
    return Lease(name, address, SyntheticMaker(JOB).offer.plan, "random", room, incarnation=incarnation, **over)  # type: ignore[arg-type]


def test_a_unit_whose_worker_ended_twice_is_granted_as_one_to_narrow() -> None:
    rules = Coordinator(SyntheticMaker(JOB).offer, LIMITS, 0.0)
    rules.hello(Hello("t", 1, 0), 0.0)
    kept = {UnitId("empty", 0, 0), UnitId("validation", 0, 0), UnitId("validation", 0, 1)}
    for start in range(3):
        granted = rules.lease(lease("w0", start, room=3), 0.1 * start)
        assert set(granted.units) == kept
        # By silence, a new address or a later start, it is the end of the one before.
        assert set(granted.narrow) == (kept if start == 2 else set())
        assert rules.lease(lease("w0", start, encoding=granted.units), 0.1 * start).units == ()
    assert set(rules.status(0.3)["troubles"]) == {str(unit) for unit in kept}  # type: ignore[call-overload]
    with pytest.raises(RefusedError, match="w0: this start of it was replaced"):
        rules.lease(lease("w0", 1, address="a:1"), 0.3)
    rules.lease(lease("w0", 2, holding=tuple(kept), bytes=3), 0.4)
    assert rules.status(0.5)["troubles"] == {}
