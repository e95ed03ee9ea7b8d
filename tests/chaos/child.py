"""What the processes of a chaos run do. Each is forked from one that has imported all this and done nothing else."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from consumer.source.flight import FlightSource
from consumer.source.producers import PullConfig
from producer.api.channel import read_registry
from producer.api.deal import deal
from producer.api.malloc import tune
from producer.api.unit import UnitId
from producer.coordinator import Limits
from producer.coordinator_server import CoordinatorServer
from producer.worker import Worker, WorkerSetup
from tests.chaos.link import Link
from tests.chaos.maker import ChaosMaker, Job, told

TOKEN = "a token as long as a real one is"
TRAINER = "trainer"
PREFETCH = 3
HORIZON_BYTES = 600_000  # some five steps
LIMITS = Limits(horizon_bytes=HORIZON_BYTES, heartbeat_s=0.1, lease_s=2.0, late_s=6.0)

# How a process ended, for its supervisor.
DONE, NO_PORT, FAILED = 0, 98, 99
_LOOK_S = 0.2


class Place(NamedTuple):
    """Where everything of a run is."""

    folder: Path

    @property
    def registry(self) -> Path:
        return self.folder / "fleet" / "coordinator.json"

    @property
    def token(self) -> Path:
        return self.folder / "fleet" / "token"

    @property
    def ledger(self) -> Path:
        """A line for each step that a start of the trainer did."""
        return self.folder / "trainer" / "ledger.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "trainer" / "checkpoints"

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"


def coordinator(folder: str, job: str, name: str, port: int) -> None:
    """A coordinator until it is told to end."""
    with _Life(folder, name) as life:
        said = Job.model_validate_json(job)
        offer = ChaosMaker(said).offer
        server = _bound(
            lambda: CoordinatorServer(offer, LIMITS, host="127.0.0.1", port=port, access=TOKEN, journal=said.journal)
        )
        life.wait()
        server.stop()


def worker(folder: str, job: str, name: str, port: int) -> None:
    """A worker until it is told to end. Every other one is as on another machine: reached over its link alone."""
    with _Life(folder, name) as life:
        setup = WorkerSetup(
            name,
            lambda: read_registry(Place(Path(folder)).registry),
            TOKEN,
            port=port,
            advertise=Link.HOST,
            local=int(name.rpartition("-")[2]) % 2 == 0,
        )
        maker = ChaosMaker(Job.model_validate_json(job), mortal=True)
        served = _bound(lambda: Worker(setup, maker))
        life.wait()
        served.stop()


class Course(NamedTuple):
    """How a start of the trainer goes."""

    incarnation: int
    start: int
    stop: int
    groups: int
    checkpoint_every: int
    pace_s: float  # a step


def trainer(folder: str, job: str, name: str, course: tuple[Any, ...]) -> None:
    """A training from `start` to `stop`, its model-parallel groups as threads; one line of the ledger a step."""
    with _Life(folder, name):
        run = _Trainer(Place(Path(folder)), Job.model_validate_json(job), Course(*course))
        run.train()


class _Trainer:
    def __init__(self, place: Place, job: Job, course: Course) -> None:
        self.place, self.job, self.course = place, job, course
        # A group that stands still here has its own deadline; the others find the barrier broken.
        self.barrier = threading.Barrier(course.groups, action=self._step)
        self.at = course.start
        self.units: dict[int, dict[str, Any]] = {}
        self.validation: dict[str, object] = {}
        self.errors: list[BaseException] = []
        self.ledger = os.open(place.ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def train(self) -> None:
        groups = [threading.Thread(target=self._guarded, args=(rank,)) for rank in range(self.course.groups)]
        for group in groups:
            group.start()
        for group in groups:
            group.join()
        real = [error for error in self.errors if not isinstance(error, threading.BrokenBarrierError)]
        if self.errors:
            raise (real or self.errors)[0]

    def _guarded(self, rank: int) -> None:
        try:
            self._group(rank)
        except BaseException as error:
            self.errors.append(error)
            self.barrier.abort()

    def _group(self, rank: int) -> None:
        course = self.course
        config = PullConfig(
            registry=self.place.registry, prefetch=PREFETCH, start_s=60.0, call_s=4.0, stall_s=1.5, wait_s=120.0
        )
        source = FlightSource(config, TRAINER, course.incarnation)
        kept = self.place.checkpoints / str(course.start)
        said = source.hello(course.start, kept.read_text() if kept.exists() else "")

        def share(step: int) -> list[UnitId]:
            return [UnitId("train", step, unit) for unit in deal(said.units, course.groups, rank)]

        source.follow(share, course.start, course.stop)
        for step in range(course.start, course.stop):
            for unit in share(step):
                self.units[unit.unit] = told(source.next_unit(unit))
            if rank == 0 and step % course.checkpoint_every == 0:
                held_out = UnitId("validation", 0, step // course.checkpoint_every % said.validation_units)
                self.validation[str(held_out)] = told(source.fetch(held_out))
            self.barrier.wait()
            if (step + 1) % course.checkpoint_every == 0:
                source.ack(step)
        source.close()

    def _step(self) -> None:
        """Once all groups have their units: the step itself, then the ledger, then perhaps a checkpoint."""
        time.sleep(self.course.pace_s)
        said = {
            "start": self.course.incarnation,
            "groups": self.course.groups,
            "step": self.at,
            "units": dict(sorted(self.units.items())),
            "validation": self.validation,
        }
        raw = json.dumps(said).encode() + b"\n"
        assert os.write(self.ledger, raw) == len(raw)
        plan = next(iter(self.units.values()))["plan"]
        self.units, self.validation = {}, {}
        self.at += 1
        if self.at % self.course.checkpoint_every == 0:
            aside = self.place.checkpoints / f".{self.at}"
            aside.write_text(plan)
            os.replace(aside, self.place.checkpoints / str(self.at))


class _Life:
    """A process's log, its end when told to or when its parent is gone, and its exit code. The block never returns."""

    def __init__(self, folder: str, name: str) -> None:
        self._log = Place(Path(folder)).log(name)
        self._told = threading.Event()
        self._parent = os.getppid()

    def __enter__(self) -> "_Life":
        tune()
        signal.signal(signal.SIGTERM, lambda *_: self._told.set())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        logging.basicConfig(
            filename=self._log,
            level=logging.INFO,
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            force=True,
        )
        logging.info("begins as process %d", os.getpid())
        return self

    def wait(self) -> None:
        while not self._told.wait(_LOOK_S) and os.getppid() == self._parent:
            pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and not isinstance(error, SystemExit):
            logging.error("ends", exc_info=error)
        logging.shutdown()
        code = error.code if isinstance(error, SystemExit) else DONE if error is None else FAILED
        # Without the interpreter's teardown, in which threads of gRPC may crash.
        os._exit(code if isinstance(code, int) else FAILED)


def _bound(start: Callable[[], Any]) -> Any:
    try:
        return start()
    except OSError as error:
        logging.warning("no port: %s", error)
        raise SystemExit(NO_PORT) from None
