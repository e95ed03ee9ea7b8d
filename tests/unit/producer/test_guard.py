"""What gets out of a Flight server and what gets in: no inside is shown, nothing crashes it, too much is sent away."""

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from producer.api.channel import MESSAGE_LIMIT, Channel, RefusedError, UnreachableError, gate
from producer.api.protocol import Hello, Locate, Located, Welcome
from producer.api.unit import UnitId
from producer.coordinator_server import CoordinatorServer
from producer.guard import GuardedServer, Traffic, Turnstile
from producer.synthetic import SyntheticMaker
from producer.unit_server import Doors, Ring
from tests.unit.producer.farm import JOB, LIMITS, TOKEN, until

ACTIONS = ["lease", "register", "failed", "hello", "locate", "ack", "lost", "goodbye", "status"]
# What must never be told: where things are, and how they failed.
INSIDE = ("Traceback", ".py", "File ", "/", "pyarrow")


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, flight.FlightClient]]:
    """A client of a coordinator and one of a worker's door, each as a stranger with the token would write it."""
    maker = SyntheticMaker(JOB)
    ring = Ring()
    unit = UnitId("train", 0, 0)
    ring.put(unit, maker(unit)[0])
    coordinator = CoordinatorServer(maker.offer, LIMITS, host="127.0.0.1", port=0, access=TOKEN)
    doors = Doors(ring, host="127.0.0.1", port=0, access=TOKEN)
    worker = doors.address.split()[0]
    clients = {where: flight.FlightClient(f"grpc://{where}") for where in (coordinator.address, worker)}
    yield dict(zip(("coordinator", "worker"), clients.values(), strict=True))
    for client in clients.values():
        client.close()
    doors.shut(5.0)
    coordinator.stop()


def options(timeout_s: float = 60.0) -> flight.FlightCallOptions:
    return flight.FlightCallOptions(timeout=timeout_s, headers=[(b"authorization", f"Bearer {TOKEN}".encode())])


def answered(call: Callable[[], Any]) -> str:
    """What is said to `call`: nothing if it is answered. Anything but an answer or a refusal is a failure."""
    try:
        call()
    except flight.FlightServerError as error:
        assert error.extra_info, "not one of ours"
        said = error.extra_info.decode()
        assert not [part for part in INSIDE if part in str(error).replace(said, "")], error
        return said
    except OSError as error:
        # What pyarrow's client makes of a refused schema.
        return str(error)
    return ""


def act(client: flight.FlightClient, kind: str, body: bytes) -> list[bytes]:
    return [result.body.to_pybytes() for result in client.do_action(flight.Action(kind, body), options())]


def put(client: flight.FlightClient) -> None:
    writer, _ = client.do_put(
        flight.FlightDescriptor.for_path("/etc/passwd"), pa.schema([("a", pa.int64())]), options()
    )
    writer.close()


def exchange(client: flight.FlightClient) -> None:
    _writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b"x"), options())
    with pytest.raises(flight.FlightServerError) as refused:
        reader.read_chunk()
    raise refused.value


@pytest.mark.parametrize("which", ["coordinator", "worker"])
def test_what_a_server_does_not_do_is_refused_without_a_word_of_its_inside(
    servers: dict[str, flight.FlightClient], which: str
) -> None:
    client = servers[which]
    descriptor = flight.FlightDescriptor.for_path("a")
    calls: dict[str, Callable[[], Any]] = {
        "LIST_FLIGHTS is not answered": lambda: list(client.list_flights(b"", options())),
        "LIST_ACTIONS is not answered": lambda: list(client.list_actions(options())),
        "GET_FLIGHT_INFO is not answered": lambda: client.get_flight_info(descriptor, options()),
        "GET_SCHEMA is not answered": lambda: client.get_schema(descriptor, options()),
        "DO_PUT is not answered": lambda: put(client),
        "DO_EXCHANGE is not answered": lambda: exchange(client),
        "no action 'shutdown'": lambda: act(client, "shutdown", b""),
        "no unit": lambda: client.do_get(flight.Ticket(b"[" * 100_000), options()).read_all(),
        "ticket": lambda: client.do_get(flight.Ticket(b"x" * (MESSAGE_LIMIT + 1)), options()).read_all(),
        "at most": lambda: act(client, "hello", b"x" * (MESSAGE_LIMIT + 1)),
    }
    if which == "coordinator":
        calls["nothing is streamed"] = lambda: client.do_get(flight.Ticket(b"[]"), options()).read_all()
        del calls["ticket"], calls["no unit"]
    for said, call in calls.items():
        reason = answered(call)
        assert said in reason and not [part for part in INSIDE if part in reason], reason


# Bytes, JSON of any shape, and messages that are nearly right.
leaves = some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=20)
trees = some.recursive(leaves, lambda of: some.lists(of, max_size=4) | some.dictionaries(some.text(), of, max_size=4))
units = some.tuples(some.sampled_from(["train", "validation", "empty", "x", ""]), some.integers(), some.integers())
fields = {
    "worker": some.text(max_size=9) | leaves,
    "trainer": some.text(max_size=9) | leaves,
    "address": some.text(max_size=40) | leaves,
    "plan": some.sampled_from([SyntheticMaker(JOB).offer.plan, ""]) | leaves,
    "encoder": some.sampled_from([SyntheticMaker(JOB).offer.encoder, ""]) | leaves,
    "unit": units | trees,
    "units": some.lists(units, max_size=3) | trees,
    "holding": some.lists(units, max_size=3) | trees,
    "encoding": some.lists(units, max_size=3) | trees,
    **dict.fromkeys(
        ["room", "bytes", "samples", "rejected", "incarnation", "step", "through"], some.integers() | leaves
    ),
    "wait_s": some.floats(max_value=0.05) | leaves.filter(lambda value: not isinstance(value, float)),
    "full": leaves,
    "reason": some.text(max_size=9),
    "numbers": some.dictionaries(some.text(max_size=5), leaves, max_size=3) | leaves,
}
nearly = some.fixed_dictionaries({}, optional=fields)
bodies = some.binary(max_size=200) | trees.map(_json := lambda tree: json.dumps(tree).encode()) | nearly.map(_json)
a_lot = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@a_lot
@given(kind=some.sampled_from(ACTIONS) | some.text(max_size=12), body=bodies)
def test_any_message_gets_an_answer_or_a_reason(
    servers: dict[str, flight.FlightClient], kind: str, body: bytes
) -> None:
    answered(lambda: act(servers["coordinator"], kind, body))


@a_lot
@given(ticket=bodies | units.map(lambda unit: json.dumps(unit).encode()))
def test_any_ticket_gets_a_unit_or_a_reason(servers: dict[str, flight.FlightClient], ticket: bytes) -> None:
    client = servers["worker"]
    answered(lambda: client.do_get(flight.Ticket(ticket), options()).read_all())


def test_after_all_that_the_servers_do_what_they_are_for(servers: dict[str, flight.FlightClient]) -> None:
    assert json.loads(act(servers["coordinator"], "status", b"")[0])
    ticket = flight.Ticket(json.dumps(["train", 0, 0]).encode())
    assert servers["worker"].do_get(ticket, options()).read_all().num_rows == JOB.samples


class Broken(GuardedServer):
    def answer(self, kind: str, body: bytes) -> bytes:
        raise FileNotFoundError("/secret/place")


def test_a_bug_leaves_as_a_number_that_the_log_explains(caplog: pytest.LogCaptureFixture) -> None:
    server = Broken(gate("127.0.0.1", 0, TOKEN), Traffic())
    channel = Channel(f"127.0.0.1:{server.port}", TOKEN)
    with caplog.at_level(logging.ERROR), pytest.raises(UnreachableError, match=r"internal error [0-9a-f]{8}") as said:
        channel.ask_raw("x", b"", 10.0)
    channel.close()
    server.shutdown()
    assert not [part for part in ("Traceback", "secret", ".py", "FileNotFound") if part in str(said.value)]
    number = str(said.value).partition("internal error ")[2][:8]
    assert number in caplog.text and "/secret/place" in caplog.text


def test_who_asks_too_often_is_told_to_come_again_and_others_are_not() -> None:
    now = [0.0]
    stile = Turnstile(Traffic(at_once=9, per_s=10.0, burst=5.0), lambda: now[0])

    def passes(peer: str) -> bool:
        try:
            with stile.passing(peer):
                return True
        except flight.FlightUnavailableError as error:
            assert "more than 10 calls/s from one host" in str(error)
            return False

    assert [passes(f"ipv4:10.0.0.1:{port}") for port in range(7)] == [True] * 5 + [False] * 2
    assert passes("ipv4:10.0.0.2:1") and passes("ipv6:%5B::1%5D:1")
    now[0] += 0.25
    assert [passes("ipv4:10.0.0.1:1") for _ in range(3)] == [True, True, False]
    for host in range(6000):
        now[0] += 1.0
        passes(f"ipv4:{host >> 8}.{host & 255}.0.1:1")
    assert len(stile._hosts) <= 4096 and stile.turned_away == 3


def test_no_more_questions_are_held_than_there_is_room_for() -> None:
    server = CoordinatorServer(
        Welcome("p", 1, 0, "e"), LIMITS, host="127.0.0.1", port=0, access=TOKEN, traffic=Traffic(at_once=3)
    )
    channel = Channel(server.address, TOKEN)
    channel.ask("hello", Hello("t", 1, 0), Welcome, 10.0)
    question = Locate("t", 1, 0, UnitId("train", 0, 0), 20.0)
    held = [threading.Thread(target=ignoring, args=(channel, question), daemon=True) for _ in range(3)]
    try:
        for thread in held:
            thread.start()
        until(lambda: server.turnstile._inside == 3)
        with pytest.raises(UnreachableError, match="busy: 3 calls at once; try again"):
            channel.ask("locate", question, Located, 10.0)
    finally:
        server.stop()
        for thread in held:
            thread.join(10.0)
        channel.close()
    assert server.turnstile._inside == 0


def ignoring(channel: Channel, question: Locate) -> None:
    with contextlib.suppress(UnreachableError, RefusedError):
        channel.ask("locate", question, Located, 30.0)


def test_a_message_too_large_is_not_even_sent() -> None:
    channel = Channel("127.0.0.1:1", TOKEN)
    with pytest.raises(RefusedError, match="at most 4194304 are taken"):
        channel.ask_raw("hello", b"x" * (MESSAGE_LIMIT + 1), 1.0)
    channel.close()
