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
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from launch.report import write_report
from launch.settings import Settings, command_line, guarded
from producer.api.channel import RefusedError, UnreachableError
from producer.cache import fill
from producer.cost import CostModel
from producer.encode import require_folders
from producer.index import Index
from producer.produce import EncodeJob

if TYPE_CHECKING:
    from producer.fleet import Fleet

# Seconds between looks at the fleet, and looks between lines.
EVERY_S, LOOKS = 5.0, 3


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
    """Watch the fleet until `stop`, a line every few seconds; what it has made."""
    tally = Tally()
    ending = False
    while not ending:
        ending = stop.wait(EVERY_S)
        try:
            status = fleet.status()
        except (UnreachableError, RefusedError):
            print("the coordinator is restarting", flush=True)
            continue
        tally.add(status)
        if ending or tally.looks % LOOKS == 1:
            print(line(status, settings), flush=True)
        for name in fleet.watch(status):
            print(f"{name} did not speak for {settings.fleet.frozen_s:g} s: replaced", flush=True)
        for unit, reason in status["troubles"].items():
            print(f"{unit}: {reason}; see {settings.fleet.log_folder}", flush=True)
    return tally.report()


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


def line(status: dict[str, Any], settings: Settings) -> str:
    """One line on how things are."""
    cached, limit = fill(settings.cache.path), settings.cache.limit_bytes
    parts = [
        f"{status['units_ahead']} units ahead ({status['bytes_ahead'] / 1e6:.0f} MB of "
        f"{status['horizon_bytes'] / 1e6:.0f} with what was trained)",
        f"{status['units_kept']}/{status['units_to_keep']} kept",
        f"{status['images_per_s']:.1f} images/s",
        f"{len(status['workers'])} workers",
        f"cache {cached / 1e6:.0f} MB ({cached / limit:.0%})" if limit else "no cache",
    ]
    parts += [f"{status[name]} {name}" for name in ("rejected", "lost", "failed", "silenced") if status[name]]
    parts += [f"{name} at step {step}" for name, step in status["trainers"].items()]
    return "  ".join(parts)


def job(settings: Settings) -> EncodeJob:
    """What the workers are to make."""
    cost = CostModel.of(settings.model)
    return EncodeJob(
        index=settings.curate.index.absolute(),
        rejects=settings.fleet.rejects_file.absolute(),
        seed=settings.run.seed,
        cost=(cost.per_token, cost.per_pair),
        source=settings.source.model_copy(update={"path": settings.source.path.absolute()}),
        recipe=settings.recipe,
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
