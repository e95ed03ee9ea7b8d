"""Bad networks between trainer, coordinator and workers: units still come, each once, in order, few at a time."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from consumer.source.flight import FlightSource
from consumer.source.producers import PullConfig
from producer.api.channel import Access, write_registry
from producer.api.tls import Tls
from producer.coordinator_server import CoordinatorServer
from producer.synthetic import SyntheticMaker
from producer.worker import Worker, WorkerSetup
from tests.chaos.link import Link
from tests.unit.producer.farm import JOB, LIMITS, TOKEN, schedule
from tests.unit.producer.papers import NAME, Authority

STEPS, FAULT_AT, PREFETCH = 16, 5, 3
# Our own bound on recovery is 5 s; the rest is for machines that do much else.
SLACK_S = 25.0


class Wire(Link):
    """A link that can also delay every piece, and change a byte in some."""

    delay_s = 0.0
    flips = 0  # still to be made
    carried = 0

    def _send(self, sink: Any, raw: bytes) -> None:
        time.sleep(self.delay_s)
        self.carried += len(raw)
        if self.flips > 0 and len(raw) > 64 and self.carried % 3 == 0:
            self.flips -= 1
            middle = len(raw) // 2
            raw = raw[:middle] + bytes([raw[middle] ^ 0x10]) + raw[middle + 1 :]
        super()._send(sink, raw)


class Net:
    """A coordinator and a worker on 127.0.0.1 that everyone reaches over wires on 127.0.0.2.

    Units come over the wire `data`, by the worker's plain port or, where nobody reaches that, by its Flight port.
    """

    def __init__(self, folder: Path, tls: Tls | None, client: Tls | None, way: str) -> None:
        self.registry = folder / "coordinator.json"
        (folder / "token").write_text(TOKEN)
        maker, access = SyntheticMaker(JOB), Access(TOKEN, tls)
        self.control, self.data, self.spare = Wire(), Wire(), Wire()
        port = self.control.port
        self.server = CoordinatorServer(maker.offer, LIMITS, host="127.0.0.1", port=port, access=access)
        write_registry(self.registry, self.control.address)
        ports = {"port": self.spare.port, "raw": self.data.port} if way == "plain" else {"port": self.data.port}
        setup = WorkerSetup("w0", lambda: self.control.address, access, advertise=self.data.HOST, **ports)
        self.worker = Worker(setup, maker)
        pull = PullConfig(registry=self.registry, prefetch=PREFETCH, wait_s=120.0, call_s=4.0, stall_s=2.0, tls=client)
        self.source = FlightSource(pull, "t", 1)

    def close(self) -> None:
        self.source.close()
        self.worker.stop()
        self.server.stop()
        self.control.close()
        self.data.close()
        self.spare.close()


@contextmanager
def net(folder: Path, tls: Tls | None = None, client: Tls | None = None, *, way: str = "plain") -> Iterator[Net]:
    running = Net(folder, tls, client, way)
    try:
        yield running
    finally:
        running.close()


def trained(running: Net, fault: Callable[[], None]) -> tuple[list[bytes], float]:
    """The bytes of every unit of a training, and the longest wait for one."""
    source, got, longest = running.source, [], 0.0
    source.hello(0)
    source.follow(schedule, 0, STEPS)
    for step in range(STEPS):
        if step == FAULT_AT:
            fault()
        for unit in schedule(step):
            start = time.monotonic()
            got.append(source.next_unit(unit).serialize().to_pybytes())
            longest = max(longest, time.monotonic() - start)
            assert len(source._ready) <= PREFETCH
        source.ack(step)
    return got, longest


def undisturbed() -> list[bytes]:
    maker = SyntheticMaker(JOB)
    return [maker(unit)[0].serialize().to_pybytes() for step in range(STEPS) for unit in schedule(step)]


def for_a_while(wires: list[Wire], seconds: float, **moods: Any) -> Callable[[], None]:
    """A fault that puts `wires` into a mood and lets them be well again."""

    def strike() -> None:
        for wire in wires:
            vars(wire).update(moods)
        threading.Timer(seconds, well).start()

    def well() -> None:
        for wire in wires:
            wire.mood, wire.delay_s = "well", 0.0

    return strike


_WHICH = ("control", "data", "both")
_CUTS = [(which, seconds) for which in _WHICH for seconds in (1.5, 5.0, 30.0, 120.0)]


@pytest.mark.parametrize(
    ("which", "seconds"),
    [pytest.param(*cut, marks=() if cut == ("both", 1.5) else pytest.mark.long) for cut in _CUTS],
)
@pytest.mark.timeout(400)
def test_a_link_that_is_cut_costs_waiting_only(tmp_path: Path, which: str, seconds: float) -> None:
    """Nothing is closed: connections stay, half open, and carry nothing."""
    with net(tmp_path) as running:
        wires = {"control": [running.control], "data": [running.data], "both": [running.control, running.data]}[which]
        running.source.config = running.source._producers.config = running.source.config.model_copy(
            update={"wait_s": seconds + 60}
        )
        got, longest = trained(running, for_a_while(wires, seconds, mood="cut"))
        assert got == undisturbed()
        assert longest < seconds + SLACK_S


def test_half_a_second_on_every_piece_costs_waiting_only(tmp_path: Path) -> None:
    with net(tmp_path) as running:
        got, _ = trained(running, for_a_while([running.control, running.data], 2.0, delay_s=0.5))
        assert got == undisturbed()


@pytest.mark.parametrize("way", ["plain", "flight"])
def test_connections_reset_in_mid_batch_cost_waiting_only(tmp_path: Path, way: str) -> None:
    with net(tmp_path, way=way) as running:
        stop = threading.Event()

        def resetting() -> None:
            for _ in range(8):
                running.data.delay_s = 0.05
                time.sleep(0.15)
                running.data.reset()
                running.control.reset()
            running.data.delay_s = 0.0
            stop.set()

        got, longest = trained(running, threading.Thread(target=resetting, daemon=True).start)
        assert got == undisturbed()
        assert stop.wait(10.0) and longest < SLACK_S


@pytest.mark.parametrize("way", ["plain", "flight"])
def test_a_byte_changed_in_a_unit_is_found_and_the_unit_comes_again(tmp_path: Path, way: str) -> None:
    with net(tmp_path, way=way) as running:
        got, _ = trained(running, lambda: setattr(running.data, "flips", 6))
        assert got == undisturbed()
        assert running.data.flips == 0


def test_under_tls_a_byte_changed_anywhere_is_found(tmp_path: Path) -> None:
    ours = Authority(tmp_path / "papers")
    tls, client = ours.tls(NAME, name=NAME, require_client=True), ours.tls("trainer", name=NAME)
    with net(tmp_path, tls, client, way="flight") as running:

        def flip() -> None:
            running.data.flips = running.control.flips = 4

        got, _ = trained(running, flip)
        assert got == undisturbed()
        assert running.data.flips == 0
