"""What TLS, mTLS and a Unix socket make of a unit's way to a trainer, against plain TCP by Flight, alternating.

The socket's is the trainer's own way (consumer/source/streams.py): the memory itself, mapped.
Printed, and kept in runs/bench/data.json.
"""

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from consumer.source.streams import Streams
from producer.api import local
from producer.api.channel import Access, Channel
from producer.api.malloc import tune
from producer.api.unit import UnitId
from producer.unit_server import Doors, Ring
from tests.bench.report import record
from tests.unit.producer.farm import TOKEN
from tests.unit.producer.papers import NAME, Authority

UNIT = UnitId("train", 0, 0)
BYTES, ROUNDS, READS = 32 << 20, 9, 12
NEEDED = 18e6  # bytes a second of one rank: 20B at 256p, 256 text tokens, 400 TFLOP/s (9.6 samples/s)


def serve(access: Access, sockets: str, doors: Any) -> None:
    """One worker's doors in a process of their own, until it is killed."""
    tune()
    local._folder = lambda: Path(sockets)  # type: ignore[assignment]
    ring = Ring(near=True)
    raw = np.random.default_rng(0).integers(0, 255, BYTES // 8, dtype=np.int64)
    ring.put(UNIT, pa.record_batch([pa.array(raw)], names=["a"]))
    opened = Doors(ring, host="127.0.0.1", port=0, access=access, local=True)
    doors.send(opened.address)
    while doors.poll(None):
        doors.recv()
        times = os.times()
        doors.send(times.user + times.system)


class Way:
    """A channel to a server of its own, and what it took."""

    def __init__(self, server: Access, client: Access, sockets: str, near: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(server, sockets, theirs), daemon=True)
        self.process.start()
        address = self.pipe.recv()
        self.address = address
        self.channel = Channel(address, client)
        self.streams = Streams(lambda: client, 60.0) if near else None
        assert self.streams is None or local.near(address), address
        self.rates: list[tuple[float, float, float]] = []  # GB/s, and CPU-seconds a GB of client and server

    def cpu(self) -> float:
        self.pipe.send(None)
        return float(self.pipe.recv())

    def measure(self) -> None:
        theirs, mine, start = self.cpu(), os.times(), time.perf_counter()
        size = sum(self.read().nbytes for _ in range(READS)) / 1e9
        seconds, now = time.perf_counter() - start, os.times()
        spent = now.user + now.system - mine.user - mine.system
        self.rates.append((size / seconds, spent / size, (self.cpu() - theirs) / size))

    def read(self) -> pa.RecordBatch:
        if self.streams is not None:
            return self.streams.read(self.address, UNIT)
        return self.channel.open(UNIT, 60.0).read_chunk().data

    def close(self) -> None:
        self.channel.close()
        if self.streams is not None:
            self.streams.close()
        self.process.kill()
        self.process.join(10.0)


@contextmanager
def ways(folder: Path) -> Iterator[dict[str, Way]]:
    authority = Authority(folder / "papers")
    server, client = authority.tls(NAME, name=NAME), authority.tls(name=NAME)
    both, shown = authority.tls(NAME, name=NAME, require_client=True), authority.tls("trainer", name=NAME)
    plain = Access(TOKEN)
    with tempfile.TemporaryDirectory(prefix="w-", dir="/tmp") as short:
        before, local._folder = local._folder, lambda: Path(short) / "s"  # type: ignore[assignment]
        opened = {
            "TCP": Way(plain, plain, f"{short}/s", False),
            "TLS": Way(Access(TOKEN, server), Access(TOKEN, client), f"{short}/s", False),
            "mTLS": Way(Access(TOKEN, both), Access(TOKEN, shown), f"{short}/s", False),
            "Unix socket": Way(plain, plain, f"{short}/s", True),
        }
        try:
            yield opened
        finally:
            for way in opened.values():
                way.close()
            local._folder = before


def test_units_over_tls_and_a_unix_socket_against_plain_tcp(tmp_path: Path) -> None:
    tune()
    with ways(tmp_path) as opened:
        for number in range(ROUNDS + 1):
            for way in opened.values():
                way.measure()
                if number == 0:
                    way.rates.clear()
        rates = {name: way.rates for name, way in opened.items()}
    print()
    for name, seen in rates.items():
        fast, mine, theirs = (sorted(column) for column in zip(*seen, strict=True))
        print(
            f"{name:12} {statistics.median(fast):5.2f} [{fast[0]:.2f}, {fast[-1]:.2f}] GB/s, "
            f"CPU-s/GB client {statistics.median(mine):.2f}, server {statistics.median(theirs):.2f}"
        )
    cases: dict[str, dict[str, object]] = {}
    speed = {name: statistics.median(rate[0] for rate in seen) for name, seen in rates.items()}
    for name in ("TLS", "mTLS"):
        ratio = statistics.median(ours[0] / plain[0] for ours, plain in zip(rates[name], rates["TCP"], strict=True))
        said = {"ours": speed[name], "peer": speed["TCP"], "ratio": ratio, "target": 0.45, "unit": "GB/s"}
        cases[f"transport {name}"] = said
    # Of both ends; the speed of a machine that does nothing else is no matter of the processor.
    ours, plain = (statistics.median(sum(rate[1:]) for rate in rates[name]) for name in ("Unix socket", "TCP"))
    cases["transport Unix socket"] = {
        "ours": ours,
        "peer": plain,
        "ratio": plain / ours,
        "target": 1.0,
        "unit": "CPU-s/GB",
    }
    need = speed["mTLS"] * 1e9
    cases["transport mTLS over a rank's need"] = {
        "ours": need,
        "peer": NEEDED,
        "ratio": need / NEEDED,
        "target": 10.0,
        "unit": "bytes/s",
    }
    print(json.dumps({name: round(float(str(case["ratio"])), 2) for name, case in cases.items()}))
    record("data.json", cases)
