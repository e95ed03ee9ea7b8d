"""The plain door to a worker's units: who may, what is taken, and that nothing but a whole unit passes for one."""

import contextlib
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pytest

from consumer.source.streams import Streams
from producer.api.channel import Access, DeniedError, RefusedError, UnreachableError
from producer.api.local import far, raw, together
from producer.api.parcel import ASK, BYTES, HEAD, MAPPED, REASON_LIMIT, REFUSED, REQUEST_LIMIT, CutError, Line
from producer.api.unit import UnitId
from producer.guard import Traffic
from producer.parcels import ParcelServer
from producer.synthetic import SyntheticMaker
from producer.unit_server import Doors, Ring, UnitDoor
from tests.unit.producer.farm import JOB, TOKEN, train, until

UNIT = train(0, 0)
BATCH = SyntheticMaker(JOB)(UNIT)[0]


@contextmanager
def doors(**more: object) -> Iterator[Doors]:
    ring = Ring()
    ring.put(UNIT, BATCH)
    opened = Doors(ring, host="127.0.0.1", port=0, access=TOKEN, **more)  # type: ignore[arg-type]
    try:
        yield opened
    finally:
        opened.shut(1.0)


def plain(opened: Doors) -> tuple[str, int]:
    where = raw(opened.address)
    assert where is not None
    return where


@contextmanager
def streams(token: str = TOKEN, call_s: float = 20.0) -> Iterator[Streams]:
    reading = Streams(lambda: Access(token), call_s)
    try:
        yield reading
    finally:
        reading.close()


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of who answers each connection to a plain port as a test likes, and has nothing else."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            with line:
                answer(line)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield together("127.0.0.1:1", listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_units_come_by_the_plain_port_one_after_another_on_one_connection() -> None:
    with doors() as opened, streams() as reading:
        for _ in range(3):
            assert reading.read(opened.address, UNIT).equals(BATCH)
        assert len(opened._doors[0]._server._lines) == 1
        with pytest.raises(RefusedError, match=r"^train step 0 unit 1 is not held here$"):
            reading.read(opened.address, train(0, 1))
        assert reading.read(opened.address, UNIT).equals(BATCH)


def test_who_does_not_know_the_token_gets_nothing() -> None:
    with doors() as opened:
        for token in ("", "wrong", TOKEN[:-1], TOKEN + "x", "\udcff"):
            with streams(token) as reading, pytest.raises((DeniedError, UnreachableError)):
                reading._by_line(opened.address, UNIT)
        assert opened._doors[0]._ring.numbers()["served_units"] == 0


def test_where_the_plain_port_cannot_be_reached_units_come_by_flight() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        shut = taken.getsockname()[1]
    with doors() as opened, streams() as reading:
        address = together(far(opened.address), shut)
        assert reading.read(address, UNIT).equals(BATCH)
        assert address in reading._shut and address in reading._holders


def test_a_connection_that_idled_out_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ParcelServer, "IDLE_S", 0.05)
    with doors() as opened, streams() as reading:
        for _ in range(2):
            assert reading.read(opened.address, UNIT).equals(BATCH)
            until(lambda: not opened._doors[0]._server._lines)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        ASK.pack(0),
        ASK.pack(REQUEST_LIMIT + 1) + bytes(REQUEST_LIMIT + 1),
        ASK.pack(2**32 - 1),
        ASK.pack(7) + b"garbage",
        ASK.pack(2) + b"[]",
        ASK.pack(4) + b"null",
        *(
            ASK.pack(len(raw)) + raw
            for raw in (
                json.dumps({"token": TOKEN}).encode(),
                json.dumps({"token": TOKEN, "unit": ["train", 0]}).encode(),
                json.dumps({"token": TOKEN, "unit": ["train", "x", 0]}).encode(),
                b"[" * 4000,
                b'{"token": "x", "unit": ["train", 1e999, 0]}',
            )
        ),
    ],
)
def test_garbage_ends_the_connection_and_nothing_else(said: bytes) -> None:
    with doors() as opened, streams() as reading:
        with socket.create_connection(plain(opened), 20.0) as line:
            line.sendall(said)
            with contextlib.suppress(ConnectionResetError):  # as one that is closed with bytes unread
                assert line.recv(1000) == b""
        assert reading.read(opened.address, UNIT).equals(BATCH)


def test_random_requests_end_no_server() -> None:
    draw = random.Random(0)
    good = json.dumps({"token": TOKEN, "unit": UNIT}).encode()
    with doors() as opened, streams() as reading:
        for _ in range(200):
            damaged = bytearray(ASK.pack(len(good)) + good)
            for _ in range(draw.randrange(1, 4)):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            with socket.create_connection(plain(opened), 20.0) as line, contextlib.suppress(ConnectionError, OSError):
                line.sendall(damaged)
                line.shutdown(socket.SHUT_WR)  # unless the server has closed it by then
        assert reading.read(opened.address, UNIT).equals(BATCH)


def test_who_asks_slowly_or_not_at_all_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ParcelServer, "ASK_S", 0.2)
    with doors() as opened:
        for said in (b"", b"\x10", ASK.pack(100) + b"{"):
            with socket.create_connection(plain(opened), 20.0) as line:
                line.sendall(said)
                assert line.recv(10) == b""
        until(lambda: not opened._doors[0]._server._lines)


def test_more_connections_than_are_taken_are_closed_and_the_others_served() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    server = ParcelServer(listener, lambda token, unit, who: (REFUSED, "no"), at_once=2)
    where = listener.getsockname()[:2]
    kept = [Line(where) for _ in range(2)]
    assert all(line.ask("", UNIT, 20.0) == (REFUSED, "no") for line in kept)
    kept.append(Line(where))
    with pytest.raises(CutError):
        kept[-1].ask("", UNIT, 20.0)
    assert kept[0].ask("", UNIT, 20.0) == (REFUSED, "no")
    server.shut()
    for line in kept:
        line.close()


def test_more_transfers_than_are_allowed_are_put_off_with_the_reason() -> None:
    ring = Ring()
    ring.put(UNIT, BATCH)
    listener = socket.create_server(("127.0.0.1", 0))
    door = UnitDoor(ring, listener, TOKEN, Traffic(at_once=8, per_s=0.001, burst=2))
    address = together("127.0.0.1:1", listener.getsockname()[1])
    with streams() as reading:
        for _ in range(2):
            assert reading.read(address, UNIT).equals(BATCH)
        with pytest.raises(UnreachableError, match=r"busy: more than 0.001 calls/s from one host"):
            reading.read(address, UNIT)
    door.shut()


def test_a_fault_inside_shows_a_number_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ring, "serve", lambda *_, **__: 1 / 0)
    with (
        doors() as opened,
        streams() as reading,
        pytest.raises(UnreachableError, match=r"internal error [0-9a-f]{8};") as e,
    ):
        reading.read(opened.address, UNIT)
    assert "Zero" not in str(e.value) and ".py" not in str(e.value)


def whole() -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, BATCH.schema) as writer:
        writer.write_batch(BATCH)
    return bytes(sink.getvalue().to_pybytes())


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "closed before it answered"),
        (b"b\x01", "closed before it answered"),
        (HEAD.pack(BYTES, 1000) + bytes(10), "closed after 10 of 1000 bytes"),
        (HEAD.pack(BYTES, 3 << 30), "no unit: b'b' of 3221225472 bytes"),
        (HEAD.pack(b"r", REASON_LIMIT + 1), "no unit"),
        (HEAD.pack(b"x", 1), "no unit: b'x'"),
        (HEAD.pack(MAPPED, 100), "0 files came for 100 bytes"),
        (HEAD.pack(BYTES, 64) + bytes(range(64, 128)), "sent what is no unit"),
        (HEAD.pack(BYTES, 0), "sent what is no unit"),
        (HEAD.pack(BYTES, len(whole()) // 2) + whole()[: len(whole()) // 2], "sent what is no unit"),
    ],
)
def test_what_is_no_unit_is_worth_another_try(said: bytes, reason: str) -> None:
    def answer(line: socket.socket) -> None:
        (size,) = ASK.unpack(line.recv(ASK.size, socket.MSG_WAITALL))
        line.recv(size, socket.MSG_WAITALL)
        line.sendall(said)

    with answering(answer) as address, streams() as reading, pytest.raises(UnreachableError, match=reason):
        reading.read(address, UNIT)


def test_a_transfer_that_gets_stuck_ends_by_its_deadline_and_by_the_watchdog() -> None:
    gone = threading.Event()

    def answer(line: socket.socket) -> None:
        line.recv(1000)
        line.sendall(HEAD.pack(BYTES, 1000) + bytes(10))
        gone.wait(60)

    with answering(answer) as address:
        with streams(call_s=0.3) as reading, pytest.raises(UnreachableError, match=r"not sent within 0.3 s"):
            reading.read(address, UNIT)
        gone.set()
        gone.clear()
        with streams(call_s=60.0) as reading:
            said: list[str] = []

            def read() -> None:
                try:
                    reading.read(address, UNIT)
                except UnreachableError as error:
                    said.append(str(error))

            thread = threading.Thread(target=read)
            thread.start()
            until(lambda: bool(reading._reads))
            start = time.monotonic()
            while thread.is_alive():
                reading.cancel(0.0)
                thread.join(0.05)
            assert time.monotonic() - start < 30 and said
        gone.set()


def test_under_tls_there_is_no_plain_port(tmp_path: object) -> None:
    class Tls:
        pass

    ring = Ring()
    opened = Doors.__new__(Doors)
    opened._doors = []
    assert opened._open_plain(ring, "127.0.0.1", 0, Access(TOKEN, Tls())) is None  # type: ignore[arg-type]
    reading = Streams(lambda: Access(TOKEN, Tls()), 1.0)  # type: ignore[arg-type]
    assert reading._by_line("127.0.0.1:1 raw:2", UNIT) is None


def test_nothing_is_left_open_when_the_doors_shut() -> None:
    before = threading.active_count()
    with doors() as opened:
        line = Line(plain(opened))
        assert line.ask(TOKEN, UNIT, 20.0)[0] == BYTES
    with pytest.raises(CutError):
        line.ask(TOKEN, UNIT, 20.0)
    line.close()
    until(lambda: threading.active_count() <= before)


def test_a_request_takes_no_other_field_into_account() -> None:
    with doors() as opened, socket.create_connection(plain(opened), 20.0) as line:
        said = json.dumps(
            {"token": TOKEN, "unit": UnitId("../../etc/passwd", 0, 0), "x": struct.calcsize("q")}
        ).encode()
        line.sendall(ASK.pack(len(said)) + said)
        kind, size = HEAD.unpack(line.recv(HEAD.size, socket.MSG_WAITALL))
        assert kind == REFUSED and b"is not held here" in line.recv(size, socket.MSG_WAITALL)
