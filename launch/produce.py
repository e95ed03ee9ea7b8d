"""Encode the plan's units ahead of the trainers and serve them, until told to end.

    python launch/produce.py launch/configs/smoke.toml [key.path=value ...] [--show]

Needs an index (launch/curate.py). Prints "ready" once trainers may come, then a line every few seconds. Ctrl-C or
SIGTERM ends it, its workers and its own Ray within five seconds.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from launch.producer_console import ProducerView
from launch.report import write_report
from launch.settings import Settings, command_line, guarded
from producer.api.channel import RefusedError, UnreachableError
from producer.balance import lines
from producer.cache import fill
from producer.cost import CostModel
from producer.encode import require_folders
from producer.index import Index
from producer.metrics import FleetMetrics, Look
from producer.produce import EncodeJob
from producer.proposal import opening
from producer.scaling import Scaler, Sight, busy_share

if TYPE_CHECKING:
    from producer.fleet import Fleet

# Seconds between looks at the fleet.
EVERY_S = 5.0


def main() -> NoReturn:
    settings, arguments = command_line(__doc__, _options)
    check(settings)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Here, since Ray takes seconds to import and a wrong setting should not have to wait for it.
    from producer.fleet import Fleet

    try:
        with Fleet(settings.fleet, job(settings)) as fleet:
            stop = asked_to_stop()
            workers = settings.fleet.workers
            print(f"ready: {workers} workers, plan {fleet.plan}, coordinator at {fleet.address}", flush=True)
            for line in lines(fleet.balance):
                print(f"  {line}", flush=True)
            report = run(fleet, settings, stop)
    except (KeyboardInterrupt, SystemExit):
        # While it starts; Ray has SIGTERM raise the second.
        leave(128 + signal.SIGINT)
    if arguments.report:
        write_report(arguments.report, report)
    print("ended")
    leave(0)


def leave(code: int) -> NoReturn:
    """End at once: all is put away, and unloading torch would only take seconds more."""
    sys.stdout.flush()
    os._exit(code)


def asked_to_stop() -> threading.Event:
    """Set by SIGINT and SIGTERM, however often they come."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def run(fleet: "Fleet", settings: Settings, stop: threading.Event) -> dict[str, Any]:
    """Watch the fleet until `stop`, and show it; what it has made."""
    tally, numbers = Tally(), Numbers(settings)
    look, ending = Look(reachable=False), False
    with _shown(settings) as (view, metrics):
        while not ending:
            ending = stop.wait(EVERY_S)
            try:
                status = fleet.status()
            except (UnreachableError, RefusedError):
                look = replace(look, reachable=False)
                metrics(look)
                view.note("coordinator", "restarting")
                continue
            look = numbers.look(status)
            tally.add(status)
            metrics(look)
            view(look, last=ending)
            for name in fleet.watch(status):
                view.note(name, f"did not speak for {settings.fleet.frozen_s:g} s: replaced")
            for unit, reason in status["troubles"].items():
                view.note(unit, f"{reason}; see {settings.fleet.log_folder}")
            if settings.fleet.max_workers and not ending:
                for said in fleet.resize(look.wanted):
                    view.note("", said)
    return tally.report()


@contextmanager
def _shown(settings: Settings) -> Iterator[tuple[ProducerView, Callable[[Look], None]]]:
    """The view, and the metrics where they are wanted."""
    fleet = settings.fleet
    metrics = FleetMetrics(fleet.metrics_host, fleet.metrics_port) if fleet.metrics_port >= 0 else None
    view = ProducerView()
    if metrics:
        view.say(f"metrics at http://{fleet.metrics_host}:{metrics.port}/metrics")
    try:
        yield view, metrics or (lambda look: None)
    finally:
        view.close()
        if metrics:
            metrics.close()


class Numbers:
    """What is seen of the fleet, and how many workers that calls for."""

    def __init__(self, settings: Settings) -> None:
        self._fleet, self._cache = settings.fleet, settings.cache
        self._scaler = Scaler(self._fleet.workers, self._fleet.max_workers, settle_s=self._fleet.settle_s)
        self._last: dict[str, dict[str, float]] = {}

    def look(self, status: dict[str, Any]) -> Look:
        """The fleet now, from the coordinator's status."""
        held = status["units_ahead"] + status["units_behind"]
        ahead = status["bytes_ahead"] * status["units_ahead"] / max(1, held)
        sight = Sight(
            now=time.monotonic(),
            units_ahead=status["units_ahead"],
            fill=ahead / status["horizon_bytes"],
            waited=status["waiting"] > 0,
            busy=busy_share(self._last, status["numbers"]),
            workers=len(status["workers"]),
        )
        self._last = status["numbers"]
        return Look(
            status=status,
            cache_bytes=fill(self._cache.path),
            cache_limit=self._cache.limit_bytes,
            ring_limit=self._fleet.worker_bytes,
            wanted=self._scaler.look(sight) if self._fleet.max_workers else self._fleet.workers,
        )


class Tally:
    """What was made in all, also by coordinators that were replaced since, and how fast while something was."""

    def __init__(self) -> None:
        self.done = dict.fromkeys(("registered", "samples", "rejected"), 0)
        self.last = dict(self.done)
        self.seconds, self.looked, self.looks = 0.0, time.monotonic(), 0

    def add(self, status: dict[str, Any]) -> None:
        """Count what is new since the last look."""
        before = self.done["registered"]
        restarted = status["registered"] < self.last["registered"]
        for name in self.done:
            self.done[name] += status[name] - (0 if restarted else self.last[name])
            self.last[name] = status[name]
        now = time.monotonic()
        self.seconds += (now - self.looked) * (self.done["registered"] > before)
        self.looked = now
        self.looks += 1

    def report(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "units": self.done["registered"],
            "images": self.done["samples"],
            "rejected": self.done["rejected"],
            "images_per_s": round(self.done["samples"] / self.seconds, 2) if self.seconds else 0.0,
        }


def job(settings: Settings) -> EncodeJob:
    """What the workers are to make."""
    cost = CostModel.of(settings.model)
    recipe, generation = opening(settings.fleet.journal_file, settings.recipe, settings.curate.index)
    return EncodeJob(
        index=settings.curate.index.absolute(),
        generation=generation,
        rejects=settings.fleet.rejects_file.absolute(),
        seed=settings.run.seed,
        cost=(cost.per_token, cost.per_pair),
        source=settings.source.absolute(),
        recipe=recipe,
        encoder=settings.encoder.model_copy(update={"root": settings.encoder.root.absolute()}),
        cache=settings.cache.model_copy(update={"path": settings.cache.path.absolute()}),
    )


def check(settings: Settings) -> None:
    """Find what is missing before anything is started: encoders, index."""
    require_folders(settings.encoder.root)
    Index.open(settings.curate.index)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, help="where to write, at the end, what was made")


if __name__ == "__main__":
    guarded(main)
