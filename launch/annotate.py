"""Annotate what curation keeps: a caption, what kind of picture it is, watermarks, and what disturbs the view.

    python launch/annotate.py CONFIG [key.path=value ...] [--report FILE] [--show]

Asks the model in [annotate] about every kept sample of the latest index generation that has no annotation yet. Stopped
at any moment it goes on from there. `curate.annotations` then takes the captions and tags into the next generation.
"""

import argparse
import signal
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import TimeRemainingColumn
from rich.table import Table

from launch.bar import Bar, plain
from launch.report import write_report
from launch.settings import Settings, command_line, guarded
from producer.annotate.run import Funnel, Progress, annotate

# Seconds between lines where output is no terminal.
_EVERY_S = 5.0


def run(settings: Settings) -> Funnel:
    """Annotate what `settings` name, with progress shown."""
    view = AnnotationView()
    try:
        return annotate(settings.source, settings.annotate, settings.curate.index, progress=view)
    except KeyboardInterrupt:
        view.close()
        print("interrupted; what was answered is kept, run it again to go on", flush=True)
        raise
    finally:
        view.close()


class AnnotationView:
    """Progress for people."""

    def __init__(self) -> None:
        self._bar = Bar(_EVERY_S, TimeRemainingColumn())

    def __call__(self, progress: Progress) -> None:
        failed = "".join(f", {number} {reason}" for reason, number in sorted(progress.failed.items()))
        line = f"annotating: {progress.done} of {progress.total} samples, {progress.asked} asked now{failed}"
        self._bar.show(line, progress.done, progress.total)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.close()


def show(funnel: Funnel) -> None:
    """Print the funnel as a table: in = annotated + failed + skipped."""
    table = Table("annotation", "", "for example")
    table.columns[1].justify = "right"
    table.add_row("in", f"{funnel.seen}", f"kept in index generation {funnel.generation[:12]}")
    for reason, number in sorted(funnel.failed.items()):
        table.add_row(f"failed: {reason}", f"-{number}", plain(funnel.example.get(reason, "")))
    for reason, number in sorted(funnel.skipped.items()):
        table.add_row(f"skipped: {reason}", f"-{number}", "")
    table.add_row("annotated", f"{funnel.annotated}", f"{funnel.before} of them earlier; {funnel.annotator}")
    table.add_row("with a fused caption", f"{funnel.fused}", "", end_section=not funnel.fused_failed)
    for reason, number in sorted(funnel.fused_failed.items()):
        table.add_row(f"not fused: {reason}", f"{number}", plain(funnel.example.get(reason, "")))
    tokens = f"{funnel.prompt_tokens} tokens of questions, {funnel.answer_tokens} of answers"
    table.add_row("questions asked now", f"{funnel.calls}", tokens)
    Console().print(table)


def report(funnel: Funnel, seconds: float) -> dict[str, Any]:
    """The funnel as JSON values: in = annotated + the sums of failed and skipped."""
    return {
        "in": funnel.seen,
        "annotated": funnel.annotated,
        "annotated_before": funnel.before,
        "failed": dict(sorted(funnel.failed.items())),
        "skipped": dict(sorted(funnel.skipped.items())),
        "fused": funnel.fused,
        "fused_failed": dict(sorted(funnel.fused_failed.items())),
        "questions": funnel.calls,
        "prompt_tokens": funnel.prompt_tokens,
        "answer_tokens": funnel.answer_tokens,
        "generation": funnel.generation,
        "annotator": funnel.annotator,
        "seconds": round(seconds, 1),
    }


def main() -> int:
    settings, arguments = command_line(__doc__, _options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
