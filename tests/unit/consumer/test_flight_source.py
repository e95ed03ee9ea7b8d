"""Pulling: ahead of need, in order, with an end in sight whatever the other side does."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from pydantic import ValidationError

from consumer.source.flight import FlightSource
from consumer.source.producers import PullConfig, SourceError
from producer.api.channel import Channel, gate, write_registry
from producer.api.protocol import Located, Welcome, encode
from producer.api.unit import Header, UnitId, pack
from producer.synthetic import SyntheticJob, SyntheticMaker
from tests.unit.producer.farm import JOB, TOKEN, Farm, farm, schedule, train, until


class Other(flight.FlightServerBase):  # type: ignore[misc]
    """Coordinator and holder in one, whose answers a test chooses."""

    def __init__(self, serve: Callable[[UnitId], flight.FlightDataStream], offer: Welcome | None = None) -> None:
        self.serve_unit, self.lost, self.offer = serve, 0, offer or Welcome("p", 1, 0, "e")
        super().__init__(**gate("127.0.0.1", 0, TOKEN))
        self.address = f"127.0.0.1:{self.port}"

    def do_action(self, context: object, action: flight.Action) -> list[bytes]:
        self.lost += action.type == "lost"
        answers = {"hello": self.offer, "locate": Located(self.address)}
        return [encode(answers[action.type]) if action.type in answers else b'{"accepted": true}']

    def do_get(self, context: object, ticket: flight.Ticket) -> flight.FlightDataStream:
        return self.serve_unit(train(0, 0))


def batch(plan: str = "p", number: int = 0) -> pa.RecordBatch:
    return pack(Header(plan, train(0, number), "e"), [])


def stream(unit: pa.RecordBatch) -> flight.RecordBatchStream:
    return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(unit.schema, [unit]))


def pulling(folder: Path, address: str, **config: object) -> FlightSource:
    (folder / "token").write_text(TOKEN)
    settings = {"address": address, "token": folder / "token", "wait_s": 5.0} | config
    return FlightSource(PullConfig(**settings), "t", 1)  # type: ignore[arg-type]


def test_units_are_pulled_ahead_of_need_up_to_the_bound(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        running.worker("w0")
        source = running.source(prefetch=3)
        source.hello(0)
        source.follow(schedule, 0, 50)
        until(lambda: len(source._ready) == 3)
        time.sleep(0.2)
        assert source._ready == [train(0, 0), train(0, 1), train(1, 0)]
        start = time.monotonic()
        source.next_unit(train(0, 0))
        assert time.monotonic() - start < 0.5
        until(lambda: len(source._ready) == 3)


def test_a_unit_is_aligned_for_torch_and_whole(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        running.worker("w0")
        source = running.source()
        source.hello(0)
        got = source.fetch(UnitId("validation", 0, 1))
        assert got.equals(SyntheticMaker(JOB)(UnitId("validation", 0, 1))[0])
        buffers = [buffer for column in got.columns for buffer in column.buffers() if buffer]
        # Of no type is more asked.
        assert all(buffer.address % 8 == 0 for buffer in buffers)


def test_nobody_there_fails_in_time_and_says_where_and_what_to_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    source = pulling(tmp_path, f"127.0.0.1:{port}", start_s=1.0)
    start = time.monotonic()
    with pytest.raises(
        SourceError, match=rf"no producers at 127.0.0.1:{port} .*start them with: python launch/produce.py"
    ):
        source.hello(0)
    assert time.monotonic() - start < 3.0
    source.close()


def test_a_server_that_never_answers_fails_in_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        source = pulling(tmp_path, f"127.0.0.1:{mute.getsockname()[1]}", start_s=1.0, call_s=0.5)
        start = time.monotonic()
        with pytest.raises(SourceError, match="no producers at"):
            source.hello(0)
        assert time.monotonic() - start < 4.0
        source.close()


def test_a_missing_registry_is_named(tmp_path: Path) -> None:
    source = FlightSource(PullConfig(registry=tmp_path / "coordinator.json", start_s=0.5), "t", 1)
    with pytest.raises(SourceError, match=r"coordinator.json: No such file.*launch/produce.py"):
        source.hello(0)
    source.close()


def test_a_wrong_token_is_refused_at_once(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        (tmp_path / "wrong").write_text("another")
        start = time.monotonic()
        with pytest.raises(SourceError, match="does not know our token"):
            running.source(token=tmp_path / "wrong").hello(0)
        assert time.monotonic() - start < 2.0


def test_a_unit_that_does_not_come_in_time_is_an_error_that_says_why(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        source = running.source(wait_s=1.5)
        source.hello(0)
        source.follow(schedule, 0, 5)
        start = time.monotonic()
        with pytest.raises(
            SourceError, match=r"train step 0 unit 0 did not come within 1.5 s .*no worker has reported yet"
        ):
            source.next_unit(train(0, 0))
        assert time.monotonic() - start < 3.0
        with pytest.raises(SourceError, match=r"did not come within 1.5 s"):
            source.fetch(UnitId("empty", 0, 0))


def test_a_training_that_is_asked_to_end_waits_a_moment_and_no_more(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        source = running.source(wait_s=60)
        source.hello(0)
        source.follow(schedule, 0, 5)
        asked = threading.Timer(0.2, source.hurry)
        start = time.monotonic()
        asked.start()
        with pytest.raises(SourceError, match=r"train step 0 unit 0 is not waited for, .*no worker has reported yet"):
            source.next_unit(train(0, 0))
        assert time.monotonic() - start < 10
        running.worker("w0")
        until(lambda: bool(source._ready))
        assert source.next_unit(train(0, 0)).num_rows  # what is there is still given


def test_an_older_start_is_told_so_where_it_waits(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        running.worker("w0")
        old = running.source()
        old.hello(0)
        old.follow(schedule, 0, 100)
        old.next_unit(train(0, 0))
        running.source(incarnation=2).hello(0)
        with pytest.raises(SourceError, match="start 1 was replaced by 2"):
            for step in range(100):
                for unit in schedule(step)[step == 0 :]:
                    old.next_unit(unit)


def test_another_plan_is_refused_rather_than_trained_on(tmp_path: Path) -> None:
    server = Other(lambda unit: stream(batch("another")))
    source = pulling(tmp_path, server.address)
    source.hello(0)
    with pytest.raises(SourceError, match="now serve plan another by encoder e; this training began with plan p"):
        source.fetch(train(0, 0))
    source.close()
    server.shutdown()


def test_another_unit_than_asked_for_is_reported_and_asked_for_again(tmp_path: Path) -> None:
    answers = iter([batch(number=5), pa.record_batch([pa.array([1])], names=["x"]), batch()])
    server = Other(lambda unit: stream(next(answers)))
    source = pulling(tmp_path, server.address)
    source.hello(0)
    assert source.fetch(train(0, 0)).equals(batch())
    assert server.lost == 2
    source.close()
    server.shutdown()


def damaged() -> pa.RecordBatch:
    """A unit with a bit of a latent flipped: its header is as it was."""
    whole = SyntheticMaker(JOB)(train(0, 0))[0]
    raw = bytearray(whole.serialize().to_pybytes())
    raw[-2000] ^= 1
    return pa.ipc.read_record_batch(pa.py_buffer(raw), whole.schema)


def test_a_unit_damaged_on_the_way_is_made_again_and_a_training_goes_on(tmp_path: Path) -> None:
    offer, whole = SyntheticMaker(JOB).offer, SyntheticMaker(JOB)(train(0, 0))[0]
    answers = iter([damaged(), damaged(), whole])
    server = Other(lambda unit: stream(next(answers)), offer)
    source = pulling(tmp_path, server.address)
    source.hello(0)
    source.follow(lambda step: [train(step, 0)], 0, 1)
    arrived = source.take(train(0, 0))
    assert arrived.batch.equals(whole) and len(arrived.samples) == JOB.samples
    assert server.lost == 2
    source.close()
    server.shutdown()


def test_a_unit_that_is_always_damaged_ends_the_wait_with_its_name(tmp_path: Path) -> None:
    server = Other(lambda unit: stream(damaged()), SyntheticMaker(JOB).offer)
    source = pulling(tmp_path, server.address, wait_s=60.0)
    source.hello(0)
    with pytest.raises(SourceError, match=r"train step 0 unit 0 arrived damaged 9 times, last: .*checksum"):
        source.fetch(train(0, 0))
    assert server.lost == 8
    source.close()
    server.shutdown()


class Torn:
    """A stream whose bytes turn out not to be Arrow's."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def read_chunk(self) -> None:
        raise self.error

    def cancel(self) -> None:
        """Nothing is under way."""


def test_a_stream_that_is_not_arrow_is_reported_and_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Other(lambda unit: stream(batch()))
    source = pulling(tmp_path, server.address)
    source.hello(0)
    whole = Channel.open
    torn = iter([Torn(pa.ArrowInvalid("bad offsets")), Torn(OSError("truncated")), Torn(StopIteration())])

    def tear(self: Channel, unit: UnitId, timeout_s: float) -> object:
        return next(torn, None) or whole(self, unit, timeout_s)

    monkeypatch.setattr(Channel, "open", tear)
    assert source.fetch(train(0, 0)).equals(batch())
    assert server.lost == 3
    source.close()
    server.shutdown()


def test_whatever_ends_the_pulling_is_heard_by_who_waits(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        running.worker("w0")
        source = running.source()
        source.hello(0)
        source.follow(lambda step: [train(step, 0)] if step < 2 else [1 // 0], 0, 5)  # type: ignore[list-item]
        assert source.next_unit(train(0, 0)) and source.next_unit(train(1, 0))
        with pytest.raises(SourceError, match="pulling failed: ZeroDivisionError"):
            source.next_unit(train(2, 0))


class Stuck:
    """Streams that send their schema and then nothing, until released."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.times = 0

    def __call__(self, unit: UnitId) -> flight.FlightDataStream:
        self.times += 1
        return flight.GeneratorStream(batch().schema, self._nothing())

    def _nothing(self) -> Iterator[pa.RecordBatch]:
        self.release.wait(10)
        yield batch()


def test_the_watchdog_ends_a_transfer_that_got_stuck(tmp_path: Path) -> None:
    stuck = Stuck()
    server = Other(lambda unit: stuck(unit) if stuck.times < 1 else stream(batch()))
    source = pulling(tmp_path, server.address, call_s=9.0, stall_s=0.5)
    source.hello(0)
    start = time.monotonic()
    assert source.fetch(train(0, 0)).equals(batch())
    assert 0.4 < time.monotonic() - start < 3.0
    assert server.lost == 1
    stuck.release.set()
    source.close()
    server.shutdown()


def test_closing_in_the_middle_of_a_stuck_transfer_takes_less_than_two_seconds(tmp_path: Path) -> None:
    stuck = Stuck()
    server = Other(stuck)
    source = pulling(tmp_path, server.address, call_s=9.0, stall_s=8.0)
    source.hello(0)
    source.follow(lambda step: [train(step, 0)], 0, 5)
    until(lambda: stuck.times >= 1)
    start = time.monotonic()
    source.close()
    assert time.monotonic() - start < 2.0
    assert not any(thread.is_alive() for thread in (*source._lanes, source._watcher))
    assert server.lost == 0
    stuck.release.set()
    server.shutdown()


def test_a_trainer_that_stops_early_never_hangs(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        running.worker("w0")
        for stage in range(4):
            source = running.source(incarnation=1 + stage)
            source.hello(0)
            if stage:
                source.follow(schedule, 0, 50)
            if stage > 1:
                source.next_unit(train(0, 0))
            if stage > 2:
                until(lambda source=source: len(source._ready) == 3)  # type: ignore[misc]
            start = time.monotonic()
            source.close()
            source.close()
            assert time.monotonic() - start < 2.0


def test_acks_reach_the_coordinator_while_the_queue_is_full_and_after_the_last_unit(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        running.worker("w0")
        source = running.source(prefetch=2)
        source.hello(0)
        source.follow(schedule, 0, 4)
        until(lambda: len(source._ready) == 2)
        source.ack(0)
        until(lambda: running.status()["trainers"] == {"t": 1})
        for step in range(4):
            for unit in schedule(step):
                source.next_unit(unit)
        source.ack(3)
        until(lambda: running.status()["trainers"] == {"t": 4})


def test_an_ack_does_not_wait_for_a_frozen_coordinator(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        running.worker("w0")
        source = running.source(prefetch=1)
        source.hello(0)
        source.follow(schedule, 0, 10)
        source.next_unit(train(0, 0))
        until(lambda: len(source._ready) == 1)
        with running.coordinator._lock:
            start = time.monotonic()
            source.ack(0)
            assert time.monotonic() - start < 0.5


def test_two_trainers_pull_one_plan_at_their_own_pace(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        running.worker("w0")
        running.worker("w1")
        fast, slow = running.source(trainer="fast"), running.source(trainer="slow")
        for source, start in ((fast, 0), (slow, 30)):
            source.hello(start)
            source.follow(schedule, start, start + 10)
        for step in range(10):
            for unit in range(JOB.units):
                assert fast.next_unit(train(step, unit)).num_rows == JOB.samples
                if step % 2:
                    continue
                assert slow.next_unit(train(30 + step // 2, unit)).num_rows == JOB.samples
            fast.ack(step)
        assert running.status()["trainers"].keys() == {"fast", "slow"}


def test_where_to_look_must_be_said_once(tmp_path: Path) -> None:
    for wrong in ({}, {"registry": tmp_path / "c.json", "address": "127.0.0.1:1"}):
        with pytest.raises(ValidationError, match=r"pull.registry: give the fleet's registry file"):
            PullConfig(**wrong)  # type: ignore[arg-type]
    assert PullConfig(registry=tmp_path / "c.json").token_file == tmp_path / "token"


def test_a_frozen_holder_and_a_frozen_coordinator_at_once_are_outlived(tmp_path: Path) -> None:
    with farm(tmp_path, SyntheticJob(units=2, validation_units=0, samples=2, bucket="64x64")) as running:
        victim = running.process("w0")
        source = running.source(call_s=1.0)
        source.hello(0)
        until(lambda: running.status()["units_ahead"] >= 4)
        os.kill(victim.pid, signal.SIGSTOP)
        running.coordinator.stop()
        threading.Timer(1.0, lambda: (write_and_start(running), running.worker("w1"))).start()
        source.follow(schedule, 0, 2)
        for step in range(2):
            for unit in schedule(step):
                assert source.next_unit(unit).num_rows == 2


def write_and_start(running: Farm) -> None:
    write_registry(running.registry, "127.0.0.1:1")
    running.start_coordinator()
