"""Workers and coordinator over real Flight on the loopback, without Ray: killed, frozen, restarted, refused."""

import os
import signal
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as flight
import pytest

from producer.api.channel import (
    BindError,
    Channel,
    DeniedError,
    RefusedError,
    UnreachableError,
    gate,
    meaning,
    write_registry,
)
from producer.api.protocol import (
    Granted,
    Hello,
    Lease,
    Locate,
    Located,
    Register,
    Registered,
    Welcome,
    encode,
)
from producer.api.unit import Header, UnitId, pack, unpack
from producer.coordinator_server import WAIT_S, CoordinatorServer
from producer.synthetic import SyntheticMaker
from producer.unit_server import Doors, Ring
from tests.unit.producer.farm import JOB, LIMITS, TOKEN, Farm, farm, schedule, settled, train, until


def pull(running: Farm, steps: int, *, start: int = 0, **config: object) -> list[bytes]:
    """Pull and ack `steps` steps as a trainer does; the bytes of each unit."""
    source = running.source(**config)
    source.hello(start)
    source.follow(schedule, start, start + steps)
    got = []
    for step in range(start, start + steps):
        for unit in schedule(step):
            got.append(source.next_unit(unit).serialize().to_pybytes())
        source.ack(step)
    return got


def made(steps: int, start: int = 0) -> list[bytes]:
    maker = SyntheticMaker(JOB)
    return [maker(unit)[0].serialize().to_pybytes() for step in range(start, start + steps) for unit in schedule(step)]


def test_two_workers_serve_a_training_bit_for_bit_and_forget_what_it_is_done_with(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        workers = [running.worker("w0"), running.worker("w1")]
        assert pull(running, 12) == made(12)
        until(
            lambda: all(
                unit.step >= 12 for worker in workers for unit in worker._ring.list()[0] if unit.stream == "train"
            )
        )
        until(lambda: running.status()["units_kept"] == 3)
        assert running.status()["lost"] == running.status()["failed"] == 0


def test_a_killed_worker_costs_waiting_only(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        victim = running.process("w0")
        source = running.source()
        source.hello(0)
        until(lambda: running.status()["units_ahead"] >= 4)
        running.worker("w1")
        os.kill(victim.pid, signal.SIGKILL)
        assert source.fetch(train(0, 0)).num_rows == JOB.samples
        assert pull(running, 6, incarnation=2) == made(6)


def test_a_frozen_worker_costs_waiting_only(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        victim = running.process("w0")
        source = running.source(call_s=1.0)
        source.hello(0)
        until(lambda: running.status()["units_ahead"] >= 4)
        running.worker("w1")
        os.kill(victim.pid, signal.SIGSTOP)
        assert source.fetch(train(0, 1)).num_rows == JOB.samples
        until(lambda: "w0" not in running.status()["workers"])
        os.kill(victim.pid, signal.SIGCONT)
        until(lambda: "w0" in running.status()["workers"])
        assert pull(running, 6, incarnation=2) == made(6)


def test_a_coordinator_that_restarts_costs_waiting_only(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        running.worker("w0")
        running.worker("w1")
        source = running.source()
        source.hello(0)
        source.follow(schedule, 0, 20)
        got = []
        for step in range(20):
            if step in (5, 12):
                running.coordinator.stop()
                running.start_coordinator(port=running.coordinator.port if step == 5 else 0)
            got += [source.next_unit(unit).serialize().to_pybytes() for unit in schedule(step)]
            source.ack(step)
        assert got == made(20)
        until(lambda: running.status()["trainers"] == {"t": 20})


def test_a_new_coordinator_does_not_have_units_made_again(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        worker = running.worker("w0")
        running.source().hello(0)
        before, held = settled(running), set(worker._ring.list()[0])
        running.coordinator.stop()
        running.start_coordinator(running.coordinator.port)
        until(lambda: "w0" in running.status()["workers"])
        running.source(incarnation=2).hello(0)
        until(lambda: running.status()["units_ahead"] >= before["units_ahead"])
        # Sizes are relearned as a mean, by which one more unit may fit.
        assert settled(running)["registered"] <= 1
        assert held <= set(worker._ring.list()[0])


def test_a_trainer_that_goes_back_gets_the_same_units_again(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        running.worker("w0")
        assert pull(running, 8) == made(8)
        assert pull(running, 5, start=2, incarnation=2) == made(5, 2)
        with pytest.raises(ValueError, match="start 1 was replaced by 2"):
            running.source(incarnation=1).hello(0)


class Faulty(SyntheticMaker):
    """Cannot make one unit, `times` times."""

    def __init__(self, unit: UnitId, times: int) -> None:
        super().__init__(JOB)
        self.unit, self.times = unit, times

    def __call__(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
        if unit == self.unit and self.times:
            self.times -= 1
            raise FileNotFoundError("/secret/place/shard.tar")
        return super().__call__(unit)


def test_a_unit_that_one_worker_cannot_make_is_made_by_another(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        running.worker("w0", Faulty(train(1, 0), 1000))
        until(lambda: running.status()["failed"] > 0)
        running.worker("w1")
        assert pull(running, 4) == made(4)


def test_a_fault_that_passes_costs_waiting_and_is_named_without_paths(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        running.worker("w0", Faulty(train(0, 1), 1))
        running.source().hello(0)
        seen: list[dict[str, str]] = []  # it passes soon
        until(lambda: bool(seen.append(running.status()["troubles"]) or seen[-1]))
        (reason,) = seen[-1].values()
        assert reason == "making it failed 1 times, last w0: FileNotFoundError"
        assert pull(running, 3, incarnation=2) == made(3)
        assert running.status()["troubles"] == {}


class Barren(SyntheticMaker):
    """All samples of its units are rejected."""

    def __call__(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
        return pack(Header(self.offer.plan, unit, self.offer.encoder, JOB.samples), []), JOB.samples


def test_a_unit_whose_samples_are_all_rejected_arrives_empty(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        running.worker("w0", Barren(JOB))
        source = running.source()
        source.hello(0)
        header, samples = unpack(source.fetch(train(0, 0)))
        assert (header.rejected, samples) == (JOB.samples, [])
        assert running.status()["rejected"] >= JOB.samples


def test_who_does_not_know_the_token_is_refused_everywhere(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        worker = running.worker("w0")
        until(lambda: running.status()["units_kept"] == 3)
        for token in ("", "wrong", TOKEN[:-1], TOKEN + "x"):
            with pytest.raises(DeniedError, match="token"):
                running.call("status", b"", token)
            channel = Channel(worker.address, token)
            with pytest.raises(DeniedError, match="token"):
                read(channel, UnitId("empty", 0, 0))
            channel.close()
        bare = flight.FlightClient(f"grpc://{running.coordinator.address}")
        with pytest.raises(flight.FlightUnauthenticatedError):
            list(bare.do_action(flight.Action("status", b""), flight.FlightCallOptions(timeout=5)))
        bare.close()


def read(channel: Channel, unit: UnitId) -> pa.RecordBatch:
    try:
        return channel.open(unit, 5.0).read_chunk().data
    except flight.FlightError as error:
        raise meaning(error, channel.address) from None


def test_a_worker_refuses_what_it_does_not_hold(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        channel = Channel(running.worker("w0").address, TOKEN)
        with pytest.raises(RefusedError, match=r"^train step 99 unit 0 is not held here$"):
            read(channel, train(99, 0))
        with pytest.raises(RefusedError, match="the ticket is no unit"):
            read(channel, "{}")  # type: ignore[arg-type]
        channel.close()


def test_a_server_open_to_other_machines_needs_a_token() -> None:
    for host in ("0.0.0.0", "192.0.2.7"):
        with pytest.raises(BindError, match="no token"):
            Doors(Ring(), host=host, port=0, access="")
        with pytest.raises(BindError, match="no token"):
            CoordinatorServer(Welcome("p", 1, 0, "e"), LIMITS, host=host, port=0, access="")
    assert gate("127.0.0.1", 0, "") == {"location": "grpc+tcp://127.0.0.1:0", "middleware": {}}


def test_garbage_is_refused_with_a_reason_and_never_a_traceback(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        for action, body, reason in (
            ("lease", b"garbage", "Lease: not JSON"),
            ("lease", b"[]", "Lease: unknown fields"),
            ("register", b'{"worker": 1}', "Register.worker: '1' is no str"),
            ("register", b'{"then": {"room": "x"}}', "Register.then: Lease.room: 'x' is no int"),
            ("locate", encode(Locate("t", 1, 0, train(0, 7), 0.0)), "is not in plan"),
            ("hello", encode(Hello("t", 1, -3)), "step -3 is negative"),
            ("ack", b"x" * (5 << 20), "at most"),
            ("drop table", b"", "no action 'drop table'"),
        ):
            with pytest.raises(RefusedError, match=reason) as refused:
                running.call(action, body)
            assert "Traceback" not in str(refused.value) and ".py" not in str(refused.value)
        assert running.status()["registered"] == 0


def test_a_bug_in_the_coordinator_shows_nothing_of_its_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with farm(tmp_path) as running:
        monkeypatch.setattr(running.coordinator._rules, "hello", lambda *_: 1 / 0)
        with pytest.raises(UnreachableError) as error:
            running.call("hello", encode(Hello("t", 1, 0)))
        assert "Traceback" not in str(error.value) and "ZeroDivision" not in str(error.value)


def test_a_question_is_answered_as_soon_as_the_unit_is_there(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        channel = Channel(running.coordinator.address, TOKEN)
        channel.ask("hello", Hello("t", 1, 0), Welcome, 5.0)
        threading.Timer(0.3, running.worker, ("w0",)).start()
        start = time.monotonic()
        found = channel.ask("locate", Locate("t", 1, 0, train(0, 0), WAIT_S), Located, 60.0)
        channel.close()
        assert found.address == running.workers[0].address
        assert time.monotonic() - start < WAIT_S - 2


def test_a_question_is_not_held_for_ever(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        channel = Channel(running.coordinator.address, TOKEN)
        start = time.monotonic()
        found = channel.ask("locate", Locate("t", 1, 0, train(0, 0), 0.3), Located, 5.0)
        channel.close()
        assert (found.address, found.reason) == ("", "no worker has reported yet")
        assert 0.25 < time.monotonic() - start < 10.0


def test_the_end_does_not_wait_for_those_who_wait(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        channel = Channel(running.coordinator.address, TOKEN)
        question, said = Locate("t", 1, 0, train(0, 0), WAIT_S), list[object]()

        def ask() -> None:
            try:
                said.append(channel.ask("locate", question, Located, 60.0))
            except UnreachableError as error:
                said.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: bool(running.coordinator._waiting))
        start = time.monotonic()
        running.coordinator.stop()
        asking.join()
        assert said and time.monotonic() - start < WAIT_S - 2
        channel.close()
        running.start_coordinator()


def test_a_worker_whose_unit_is_refused_lets_it_go(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        worker = running.worker("w0")
        until(lambda: running.status()["units_kept"] == 3)
        said = Register("other", "127.0.0.1:1", running.offer.plan, UnitId("empty", 0, 0), 1, 1, 0)
        with pytest.raises(RefusedError, match="its plan is nonsense"):
            running.call("register", encode(Register("o", "127.0.0.1:1", "nonsense", train(0, 0), 1, 1, 0)))
        assert b"is held by w0" in running.call("register", encode(said))
        assert UnitId("empty", 0, 0) in worker._ring.list()[0]


def test_a_registration_brings_the_next_units_along_and_a_refused_one_does_too(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        channel = Channel(running.coordinator.address, TOKEN)
        channel.ask("hello", Hello("t", 1, 0), Welcome, 5.0)
        plan, encoder = running.offer.plan, running.offer.encoder

        def lease(name: str, holding: tuple[UnitId, ...], room: int) -> Lease:
            return Lease(name, f"127.0.0.1:{name[1:]}", plan, encoder, room, holding=holding, bytes=len(holding))

        def register(unit: UnitId, then: Lease) -> Registered:
            said = Register(then.worker, then.address, plan, unit, 1, 4, 0, then=then)
            return channel.ask("register", said, Registered, 5.0)

        (first,) = channel.ask("lease", lease("w1", (), 1), Granted, 5.0).units
        answer = register(first, lease("w1", (first,), 2))
        assert answer.accepted and answer.granted and len(answer.granted.units) == 2
        assert not answer.granted.forget and first not in answer.granted.units
        # It is not taken for held by the lease that comes along where the registration of it is refused.
        late = register(first, lease("w2", (first,), 1))
        assert not late.accepted and "is held by w1" in late.reason
        assert late.granted and len(late.granted.units) == 1 and not late.granted.forget
        assert running.status()["registered"] == 1 and running.status()["leases"] == 3
        channel.close()


def test_a_worker_whose_memory_is_full_makes_only_what_is_needed_next(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        worker = running.worker("w0", memory_bytes=1)
        running.source().hello(5)
        near = {train(step, unit) for step in (5, 6) for unit in range(JOB.units)}
        until(lambda: {unit for unit in worker._ring.list()[0] if unit.stream == "train"} == near)
        settled(running)
        assert {unit for unit in worker._ring.list()[0] if unit.stream == "train"} == near


def test_nothing_is_left_of_a_farm(tmp_path: Path) -> None:
    before = threading.active_count()
    with farm(tmp_path) as running:
        running.worker("w0")
        pull(running, 3)
    until(lambda: threading.active_count() <= before)


def test_a_worker_follows_the_coordinator_to_another_address(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        running.worker("w0")
        until(lambda: "w0" in running.status()["workers"])
        running.coordinator.stop()
        write_registry(running.registry, "127.0.0.1:1")
        time.sleep(0.3)
        running.start_coordinator()
        until(lambda: "w0" in running.status()["workers"])
