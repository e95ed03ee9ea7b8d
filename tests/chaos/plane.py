"""A data plane inside the test's process: real Flight, real workers, makers over a real plan; trainers of any number of
groups."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from consumer.source.flight import FlightSource
from consumer.source.producers import PullConfig
from producer.api.channel import Channel, write_registry
from producer.api.deal import deal
from producer.api.unit import UnitId
from producer.coordinator import Limits
from producer.coordinator_server import CoordinatorServer
from producer.worker import Worker, WorkerSetup
from tests.chaos.child import TOKEN
from tests.chaos.maker import ChaosMaker, Job

PREFETCH = 3


class Plane:
    """Everything that it started ends with the block of `plane`."""

    def __init__(self, folder: Path, job: Job, limits: Limits) -> None:
        self.job, self.registry = job, folder / "coordinator.json"
        (folder / "token").write_text(TOKEN)
        self.maker = ChaosMaker(job)
        self.server = CoordinatorServer(self.maker.offer, limits, host="127.0.0.1", port=0, access=TOKEN)
        write_registry(self.registry, self.server.address)
        self.workers: dict[str, Worker] = {}
        self.sources: list[FlightSource] = []
        self._incarnation = 0

    def staff(self, names: Sequence[str]) -> None:
        """Let exactly these workers run."""
        for name in self.workers.keys() - set(names):
            self.workers.pop(name).stop()
        for name in names:
            if name not in self.workers:
                setup = WorkerSetup(name, lambda: self.server.address, TOKEN)
                self.workers[name] = Worker(setup, ChaosMaker(self.job))

    def start(self, start: int, stop: int, groups: int) -> list[FlightSource]:
        """A trainer's new start from `start`, in so many groups; the source of each."""
        for source in self.sources:
            source.close()
        self._incarnation += 1
        config = PullConfig(registry=self.registry, prefetch=PREFETCH, wait_s=60.0)
        self.sources = [FlightSource(config, "trainer", self._incarnation) for _ in range(groups)]
        for rank, source in enumerate(self.sources):
            source.hello(start)
            source.follow(lambda step, rank=rank: share(self.job.units, groups, rank, step), start, stop)  # type: ignore[misc]
        return self.sources

    def steps(self, first: int, end: int) -> Iterator[list[list[pa.RecordBatch]]]:
        """Of each step from `first` to before `end`, what each group is given; acked once the next one is asked for."""
        for step in range(first, end):
            yield [
                [source.next_unit(unit) for unit in share(self.job.units, len(self.sources), rank, step)]
                for rank, source in enumerate(self.sources)
            ]
            for source in self.sources:
                source.ack(step)

    def held(self) -> tuple[int, int]:
        """Bytes that workers have in memory now, and units that the trainer's groups have pulled ahead."""
        rings = sum(worker._ring.list()[1] for worker in self.workers.values())
        return rings, sum(len(source._ready) for source in self.sources)

    def status(self) -> dict[str, Any]:
        channel = Channel(self.server.address, TOKEN)
        try:
            return dict(json.loads(channel.ask_raw("status", b"", 10.0)))
        finally:
            channel.close()

    def close(self) -> None:
        for source in self.sources:
            source.close()
        self.staff([])
        self.server.stop()


def share(units: int, groups: int, rank: int, step: int) -> list[UnitId]:
    return [UnitId("train", step, unit) for unit in deal(units, groups, rank)]


@contextmanager
def plane(folder: Path, job: Job, limits: Limits) -> Iterator[Plane]:
    running = Plane(folder, job, limits)
    try:
        yield running
    finally:
        running.close()
