"""A coordinator and workers on the loopback, without Ray: real Flight, real threads, processes that can be killed."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from consumer.source.flight import FlightSource
from consumer.source.producers import PullConfig
from producer.api.channel import Channel, read_registry, write_registry
from producer.api.unit import UnitId
from producer.coordinator import Limits
from producer.coordinator_server import CoordinatorServer
from producer.synthetic import SyntheticJob, SyntheticMaker
from producer.worker import Maker, Worker, WorkerSetup

TOKEN = "a token as long as a real one is"
JOB = SyntheticJob(units=2, validation_units=2, samples=2, bucket="64x64", tokens=8, width=8)
LIMITS = Limits(horizon_bytes=200_000, heartbeat_s=0.1, lease_s=2.5)


def train(step: int, unit: int) -> UnitId:
    return UnitId("train", step, unit)


def schedule(step: int) -> list[UnitId]:
    return [train(step, unit) for unit in range(JOB.units)]


def until(fine: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not fine():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def settled(running: "Farm", timeout_s: float = 60.0) -> dict[str, Any]:
    """The coordinator's status once no worker finds anything to do: each has asked three times, and nothing moved."""
    deadline = time.monotonic() + timeout_s
    before, asked = running.status(), dict[str, int]()
    while not asked or min(asked.values()) < 3:
        assert time.monotonic() < deadline, f"it did not settle in time: {before}"
        time.sleep(0.02)
        now = running.status()
        moved = now["leases"] or any(now[name] != before[name] for name in ("registered", "units_ahead", "failed"))
        if moved or now["workers"].keys() != asked.keys():
            asked = dict.fromkeys(now["workers"], 0)
        for name, silent_s in now["workers"].items():
            # It fell silent a shorter time ago than at the last look: it has asked again.
            asked[name] += silent_s < before["workers"].get(name, 0.0)
        before = now
    return before


def run_worker(name: str, registry: str, job: str) -> None:
    """A worker as a process of its own, until it is killed."""
    setup = WorkerSetup(name, lambda: read_registry(Path(registry)), TOKEN)
    Worker(setup, SyntheticMaker(SyntheticJob.model_validate_json(job)))
    while os.getppid() != 1:
        time.sleep(0.2)


class Farm:
    """Everything that it started ends with its `with` block."""

    def __init__(self, folder: Path, job: SyntheticJob = JOB, limits: Limits = LIMITS) -> None:
        self.registry, self.job, self.limits = folder / "coordinator.json", job, limits
        (folder / "token").write_text(TOKEN)
        self.offer = SyntheticMaker(job).offer
        self.workers: list[Worker] = []
        self.processes: list[Any] = []
        self.sources: list[FlightSource] = []
        self.start_coordinator()

    def start_coordinator(self, port: int = 0) -> None:
        self.coordinator = CoordinatorServer(self.offer, self.limits, host="127.0.0.1", port=port, access=TOKEN)
        write_registry(self.registry, self.coordinator.address)

    def worker(self, name: str, maker: Maker | None = None, **setup_: Any) -> Worker:
        setup = WorkerSetup(name, lambda: read_registry(self.registry), TOKEN, **setup_)
        self.workers.append(Worker(setup, maker or SyntheticMaker(self.job)))
        return self.workers[-1]

    def process(self, name: str) -> Any:
        """A worker process that has spoken to the coordinator."""
        context = multiprocessing.get_context("spawn")
        arguments = (name, str(self.registry), self.job.model_dump_json())
        process = context.Process(target=run_worker, args=arguments, daemon=True)
        process.start()
        self.processes.append(process)
        until(lambda: name in self.status()["workers"])
        return process

    def source(self, *, trainer: str = "t", incarnation: int = 1, **config: Any) -> FlightSource:
        pull = PullConfig(**{"registry": self.registry, "prefetch": 3, "wait_s": 20.0} | config)
        self.sources.append(FlightSource(pull, trainer, incarnation))
        return self.sources[-1]

    def status(self) -> dict[str, Any]:
        return json.loads(self.call("status", b""))  # type: ignore[no-any-return]

    def call(self, action: str, body: bytes, token: str = TOKEN, address: str = "") -> bytes:
        channel = Channel(address or self.coordinator.address, token)
        try:
            return channel.ask_raw(action, body, 30.0)
        finally:
            channel.close()

    def close(self) -> None:
        for source in self.sources:
            source.close()
        for process in self.processes:
            process.kill()
            process.join(5)
        for worker in self.workers:
            worker.stop()
        self.coordinator.stop()


@contextmanager
def farm(folder: Path, job: SyntheticJob = JOB, limits: Limits = LIMITS) -> Iterator[Farm]:
    running = Farm(folder, job, limits)
    try:
        yield running
    finally:
        running.close()
