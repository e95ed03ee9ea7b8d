"""What people watch while a model trains: one live view on a terminal, plain lines elsewhere."""

import math
import time
from collections import deque

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from consumer.metrics import CheckpointReport, Part, Report, StepReport, ValidationReport

# Steps whose means are shown, so that a number can be read before it changes.
_WINDOW = 50
_BARS = "▁▂▃▄▅▆▇█"


class TrainingView:
    """A sink of reports. On a terminal one view is redrawn; elsewhere a line is printed every `every` steps."""

    def __init__(self, steps: int, done: int, every: int, console: Console | None = None) -> None:
        self.steps, self.every = steps, every
        self.console = console or Console()
        self._recent: deque[StepReport] = deque(maxlen=_WINDOW)
        # When steps ended: what lies between them, such as saving, is time that the rest will take too.
        self._ends: deque[tuple[int, float]] = deque([(done, time.monotonic())], maxlen=_WINDOW + 1)
        self._skipped, self._notes = 0, dict[str, str]()
        self._live: Live | None = None
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(None),
                TaskProgressColumn(),
                TextColumn("{task.description}"),
                console=self.console,
                expand=True,
            )
            self._task = self._bar.add_task("", total=steps, completed=done)
            self._live = Live(console=self.console, refresh_per_second=4, get_renderable=self._view)
            self._live.start()

    def __call__(self, report: Report) -> None:
        if isinstance(report, StepReport):
            self._step(report)
        elif isinstance(report, ValidationReport):
            self._note("validation", report.step, f"loss {report.loss:.4f} ({report.samples} samples)")
        elif isinstance(report, CheckpointReport):
            self._checkpoint(report)
        else:
            self._note("pictures", report.step, report.path)

    def _step(self, report: StepReport) -> None:
        if report.step <= self._ends[-1][0]:  # training went back to a checkpoint
            self._recent.clear()
            self._ends.clear()
        if self._recent and report.entry != self._recent[-1].entry:
            self._note("recipe", report.step, f"from this step on entry {report.entry} (plan {report.plan})")
        self._recent.append(report)
        self._ends.append((report.step, time.monotonic()))
        self._skipped += not report.applied
        if not report.applied:
            self._note("skipped", report.step, report.skipped or "the update was not applied")
        if self._live:
            self._bar.update(self._task, completed=report.step, description=f"{self._left()} left")
        elif report.step % self.every == 0 or report.step == self.steps:
            self._say(f"step {report.step}/{self.steps}  {'  '.join(self._numbers())}  {self._left()} left")

    def _checkpoint(self, report: CheckpointReport) -> None:
        """On a terminal alone: elsewhere the lines of the log that name a failed save are enough."""
        ended = f"in {report.seconds:.1f} s, training waited {report.stall_s:.2f} s"
        self._notes["checkpoint"] = f"step {report.step}: {ended if report.published else f'failed: {report.why}'}"

    def _note(self, kind: str, step: int, said: str) -> None:
        self._notes[kind] = f"step {step}: {said}"
        if not self._live:
            self._say(f"step {step}/{self.steps}  {kind} {said}")

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _left(self) -> str:
        (first, began), (last, ended) = self._ends[0], self._ends[-1]
        if last == first:
            return "?"
        return duration((self.steps - last) * (ended - began) / (last - first))

    def _numbers(self) -> list[str]:
        """The last loss, and means over the last steps."""
        recent = list(self._recent)
        last = recent[-1]
        seconds = sum(report.seconds for report in recent)
        shares = [report.mfu for report in recent if report.mfu is not None]
        executed = [report.hfu for report in recent if report.hfu is not None]
        return [
            f"loss {last.loss:.4f}",
            f"{sum(report.samples for report in recent) / seconds:.1f} images/s",
            f"{sum(report.tokens for report in recent) / seconds:.0f} tokens/s",
            *([f"MFU {sum(shares) / len(shares):.1%}"] if shares else []),
            *([f"HFU {sum(executed) / len(executed):.1%}"] if executed and executed != shares else []),
            f"data wait {sum(report.wait_s for report in recent) / seconds:.1%}",
            *([f"memory {last.peak_memory / 1e9:.1f} GB"] if last.peak_memory else []),
        ]

    def _view(self) -> Group:
        """The bar, the numbers, and what lately happened. Drawn by rich's thread, four times a second."""
        rows = Table.grid(padding=(0, 2))
        recent = list(self._recent)
        if recent:
            last = recent[-1]
            rows.add_row("now", "  ".join(self._numbers()))
            line = f"{last.seconds:.2f} s  norm {last.gradient_norm:.3g}  rate {last.rate:.3g}{_split(last)}"
            rows.add_row("step", line)
            rows.add_row("by noise", _levels([report.loss_by_level for report in recent]))
            rows.add_row("by size", _buckets([report.loss_by_bucket for report in recent]))
        if self._skipped:
            rows.add_row("not applied", f"{self._skipped} since the start")
        for kind, said in list(self._notes.items()):
            rows.add_row(kind, Text(said))
        return Group(self._bar, rows)

    def close(self) -> None:
        """Leave the terminal as it was, with the last view on it."""
        if self._live:
            self._live.stop()


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3 h 20 min, 2 d 5 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _split(report: StepReport) -> str:
    whole = sum(report.split.values())
    return "".join(f"  {phase} {seconds / whole:.0%}" for phase, seconds in report.split.items())


def _means(parts: list[dict[str, Part]]) -> dict[str, float]:
    """The mean over samples of each name's parts."""
    sums: dict[str, tuple[float, int]] = {}
    for step in parts:
        for name, part in step.items():
            total, samples = sums.get(name, (0.0, 0))
            sums[name] = total + part.loss * part.samples, samples + part.samples
    return {name: total / samples for name, (total, samples) in sums.items()}


def _levels(parts: list[dict[str, Part]]) -> str:
    """A bar a bin of noise levels, from clean to noise, and the range of their losses."""
    means = {name: loss for name, loss in sorted(_means(parts).items()) if math.isfinite(loss)}
    if not means:
        return ""
    low, high = min(means.values()), max(means.values())
    bars = [_BARS[round((loss - low) / ((high - low) or 1) * (len(_BARS) - 1))] for loss in means.values()]
    first, last = next(iter(means)).split("-")[0], list(means)[-1].split("-")[-1]
    return f"{first} {''.join(bars)} {last}  loss {low:.4f} to {high:.4f}"


def _buckets(parts: list[dict[str, Part]]) -> str:
    return "  ".join(f"{name} {loss:.4f}" for name, loss in sorted(_means(parts).items()))
