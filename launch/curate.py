"""Curate a source: score every sample, drop the bad ones, write a generation of the index.

    python launch/curate.py CONFIG [key.path=value ...] [--report FILE] [--show]

Prints the funnel: what came in, what was kept, what was dropped by which operator, how the rest falls into buckets.
Stopped at any moment it goes on from there; run again without a change it scores nothing.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from launch.bar import Bar, plain
from launch.report import write_report
from launch.settings import Settings, command_line, guarded
from producer.curate import Progress, curate
from producer.funnel import Funnel

# Seconds between lines where output is no terminal.
_EVERY_S = 2.0


def run(settings: Settings) -> Funnel:
    """Curate what `settings` name, with progress shown."""
    view = CurationView()
    try:
        return curate(
            settings.source,
            settings.curate,
            settings.operators,
            tokenizer=settings.encoder.root / "tokenizer",
            resolutions=settings.recipe.resolutions,
            aspects=settings.recipe.aspects,
            progress=view,
        )
    except KeyboardInterrupt:
        view.close()
        print("interrupted; shards that were scored are kept, run it again to go on", flush=True)
        raise
    finally:
        view.close()


class CurationView:
    """Progress for people."""

    def __init__(self) -> None:
        self._bar, self._stage = Bar(_EVERY_S), ""

    def __call__(self, progress: Progress) -> None:
        line = f"{progress.stage}: {progress.done} of {progress.total} shards, {progress.samples} samples"
        if progress.lost:
            line += "; dropped so far: " + ", ".join(f"{number} {name}" for name, number in progress.lost.items())
        self._bar.show(line, progress.done, progress.total, now=progress.stage != self._stage)
        self._stage = progress.stage

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.close()


def show(funnel: Funnel) -> None:
    """Print the funnel as a table; the sums add up by construction, and are printed for the reader to check."""
    table = Table("curation", "", "for example")
    table.columns[1].justify = "right"
    table.add_row("in", f"{funnel.seen}", "")
    for name, number in funnel.dropped.items():
        table.add_row(f"dropped: {name}", f"-{number}" if number else "0", plain(funnel.example.get(name, "")))
    for name, number in funnel.failed.items():
        table.add_row(f"failed: {name}", f"-{number}", plain(funnel.example.get(name, "")))
    for name, why in funnel.off.items():
        table.add_row(f"dropped: {name}", "off", why)
    table.add_row("kept", f"{funnel.kept}", f"index generation {funnel.generation[:12]}", end_section=True)
    if funnel.annotated is not None:
        table.add_row("kept: annotated", f"{funnel.annotated}", "", end_section=True)
    if funnel.faulty:
        table.add_row("kept: faulty caption", f"{funnel.faulty}", plain(funnel.faulty_example), end_section=True)
    for bucket, number in sorted(funnel.buckets.items(), key=lambda item: -item[1]):
        table.add_row(f"kept: {bucket}", f"{number}", "")
    Console().print(table)


def report(funnel: Funnel, seconds: float) -> dict[str, Any]:
    """The funnel as JSON values: in = kept + the sums of dropped and failed."""
    return {
        "in": funnel.seen,
        "kept": funnel.kept,
        "dropped": funnel.dropped,
        "failed": funnel.failed,
        "off": funnel.off,
        "buckets": funnel.buckets,
        "annotated": funnel.annotated,
        "faulty_captions": funnel.faulty,
        "generation": funnel.generation,
        "shards": funnel.shards,
        "shards_scored": funnel.scored,
        "seconds": round(seconds, 1),
    }


def main() -> int:
    settings, arguments = command_line(__doc__, _options)
    began = time.monotonic()
    funnel = run(settings)
    show(funnel)
    if arguments.report:
        write_report(arguments.report, report(funnel, time.monotonic() - began))
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the funnel there as JSON")


if __name__ == "__main__":
    guarded(main)
