"""The same encoded bytes from one process to another, in four ways. Each side of each way is a process of its own."""

import json
import multiprocessing
import os
import resource
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from producer.api.malloc import tune
from producer.api.unit import UnitId
from producer.synthetic import SyntheticJob, SyntheticMaker

# A 256p unit of 15 MB: 8 samples of 256 text tokens.
JOB = SyntheticJob(units=4, validation_units=0, samples=8, bucket="256x256", tokens=256, width=3584)
STEPS = 5
UNITS = [UnitId("train", step, unit) for step in range(STEPS) for unit in range(JOB.units)]
START_S = 600.0

Turn = Callable[[], int]  # receives everything once; the bytes


def blobs() -> list[bytes]:
    """The units as bytes."""
    maker = SyntheticMaker(JOB)
    return [maker(unit)[0].serialize().to_pybytes() for unit in UNITS]


class Side:
    """A process that answers: the seconds, CPU seconds and bytes of a turn, or its CPU seconds so far."""

    def __init__(self, run: Callable[..., Iterator[tuple[Turn, list[int]]]], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_answer, args=(theirs, run, arguments))
        self.process.start()
        theirs.close()
        self.ask("")  # it is ready

    def ask(self, what: str) -> Any:
        self._pipe.send_bytes(what.encode())
        assert self._pipe.poll(START_S), "no answer"
        return json.loads(self._pipe.recv_bytes())

    def end(self) -> None:
        self._pipe.close()
        self.process.join(20)
        self.process.kill()


def _answer(pipe: Connection, run: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    warnings.simplefilter("ignore")
    with contextmanager(run)(*arguments) as (turn, others):
        try:
            while True:
                what = pipe.recv_bytes().decode()
                if what == "turn":
                    before, start = cpu_s(others), time.perf_counter()
                    size = turn()
                    seconds = time.perf_counter() - start
                    said: Any = (seconds, cpu_s(others) - before, size)
                elif what == "prepare":
                    said = turn()
                else:
                    said = cpu_s(others)
                pipe.send_bytes(json.dumps(said).encode())
        except (EOFError, OSError):
            pass
    os._exit(0)


def cpu_s(others: list[int]) -> float:
    """CPU seconds of this process and of `others`, by process id."""
    mine = resource.getrusage(resource.RUSAGE_SELF)
    total = mine.ru_utime + mine.ru_stime
    for pid in others:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


# Ours: a worker and its coordinator, and a trainer's source.


def worker(folder: str, local: bool) -> Iterator[tuple[Turn, list[int]]]:
    from producer.coordinator import Limits
    from tests.unit.producer.farm import Farm, until

    class Maker(SyntheticMaker):
        """Makes what is delivered, and then nothing more: only delivery is measured."""

        def __call__(self, unit: UnitId) -> Any:
            if unit.stream == "train" and unit not in UNITS:
                time.sleep(1e6)
            return super().__call__(unit)

    tune()
    running = Farm(Path(folder), JOB, Limits(horizon_bytes=1 << 30, lease_s=60.0))
    made = running.worker("w0", Maker(JOB), local=local)
    running.source(trainer="another").hello(0)  # for whom units stay when the one that is timed is through
    until(lambda: set(UNITS) <= set(made._ring.list()[0]), START_S)
    yield lambda: 0, []
    running.close()


def trainer(folder: str) -> Iterator[tuple[Turn, list[int]]]:
    from consumer.source.flight import FlightSource
    from consumer.source.producers import PullConfig

    config = PullConfig(registry=Path(folder) / "coordinator.json", call_s=60.0, stall_s=60.0)
    starts = 0
    sources: list[FlightSource] = []

    def turn() -> int:
        nonlocal starts
        if not sources:
            # A training connects once, as the other ways here do.
            starts += 1
            sources.append(FlightSource(config, "t", starts))
            sources[0].hello(0)
            return 0
        source = sources.pop()
        source.follow(lambda step: [unit for unit in UNITS if unit.step == step], 0, STEPS)
        size = sum(source.next_unit(unit).nbytes for unit in UNITS)
        source.close()
        return size

    yield turn, []


# Plain TCP sockets.


def tcp_server(port_file: str) -> Iterator[tuple[Turn, list[int]]]:
    import threading

    tune()
    held = blobs()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            peer, _ = listener.accept()
            with peer:
                while peer.recv(1):
                    for blob in held:
                        peer.sendall(len(blob).to_bytes(8, "little"))
                        peer.sendall(blob)

    threading.Thread(target=serve, daemon=True).start()
    Path(port_file).write_text(str(listener.getsockname()[1]))
    yield lambda: 0, []


def tcp_client(port_file: str) -> Iterator[tuple[Turn, list[int]]]:
    tune()
    peer = socket.create_connection(("127.0.0.1", int(Path(port_file).read_text())))
    kept = [bytearray(16 << 20) for _ in range(8)]  # as many units as ours holds, written to again and again

    def turn() -> int:
        peer.sendall(b"x")
        total = 0
        for number in range(len(UNITS)):
            size = int.from_bytes(peer.recv(8, socket.MSG_WAITALL), "little")
            view, got = memoryview(kept[number % len(kept)])[:size], 0
            while got < size:
                got += peer.recv_into(view[got:])
            total += size
        return total

    yield turn, []


# Ray's object store, from one raylet to another.


def ray_pull() -> Iterator[tuple[Turn, list[int]]]:
    import numpy as np
    import psutil
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
    store = 1 << 30
    environment = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
    os.environ.update(environment)
    cluster = Cluster()
    for name in ("here", "there"):
        cluster.add_node(num_cpus=1, object_store_memory=store, resources={name: 1}, include_dashboard=False)
    ray.init(address=cluster.address, logging_level="error")
    cluster.wait_for_nodes()

    @ray.remote(num_cpus=0, resources={"there": 0.1})
    class Holder:
        def __init__(self) -> None:
            self.held = [np.frombuffer(blob, np.uint8) for blob in blobs()]

        def put(self) -> list[Any]:
            return [ray.put(blob) for blob in self.held]

    @ray.remote(num_cpus=0, resources={"here": 0.1})
    class Getter:
        def get(self, kept: list[Any]) -> int:
            return sum(ray.get(one).nbytes for one in kept)

        def pid(self) -> int:
            return os.getpid()

    holder, getter = Holder.remote(), Getter.remote()
    pids = [process.pid for process in psutil.Process().children(recursive=True) if process.name() == "raylet"]
    assert len(pids) == 2, pids
    pids.append(ray.get(getter.pid.remote()))
    fresh: list[Any] = []

    def turn() -> int:
        # Put anew before each turn that counts: what was pulled once is here.
        if not fresh:
            fresh.extend(ray.get(holder.put.remote()))
            return 0
        size = int(ray.get(getter.get.remote(list(fresh))))
        fresh.clear()
        return size

    yield turn, pids
    ray.shutdown()
    cluster.shutdown()


# webdataset and torch's DataLoader.


def loader(folder: str) -> Iterator[tuple[Turn, list[int]]]:
    import io
    import tarfile

    import torch
    import webdataset
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    held = blobs()
    for shard in range(2):
        with tarfile.open(f"{folder}/{shard}.tar", "w") as tar:
            for number, blob in enumerate(held[shard::2]):
                member = tarfile.TarInfo(f"{shard}-{number}.bin")
                member.size = len(blob)
                tar.addfile(member, io.BytesIO(blob))
    del held
    shards = [f"{folder}/{shard}.tar" for shard in range(2)]
    data = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).map(_tensor)
    loading = DataLoader(data, batch_size=None, num_workers=2, persistent_workers=True, prefetch_factor=4)
    assert sum(1 for _ in loading) == len(UNITS)
    pids = [process.pid for process in loading._iterator._workers]  # type: ignore[union-attr]
    yield lambda: sum(tensor.nbytes for tensor in loading), pids


def _tensor(sample: dict[str, Any]) -> Any:
    import torch

    warnings.simplefilter("ignore")  # the bytes are not writable
    return torch.frombuffer(sample["bin"], dtype=torch.uint8)


if __name__ == "__main__":
    sys.exit("run tests/bench/test_delivery.py")
