"""What people watch while a model trains: one live line on a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from consumer.loop import TrainConfig
from consumer.metrics import Report, ValidationReport
from model.count import utilisation

_LINE = "loss {loss:.4f}  {images:.1f} images/s  {tokens:.0f} tokens/s  data wait {wait:.1%}"


class TrainingView:
    """A sink of reports. On a terminal one line is redrawn; elsewhere a line is printed every `every` steps."""

    def __init__(self, config: TrainConfig, ranks: int, done: int, every: int) -> None:
        steps, self.peak = config.steps, config.peak_tflops * 1e12 * ranks
        self.steps, self.every, self.started, self.first = steps, every, time.monotonic(), done
        self.waited = self.trained = 0.0
        self.validation = ""
        self.progress: Progress | None = None
        if sys.stdout.isatty():
            columns = (TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn(20), TimeRemainingColumn())
            self.progress = Progress(*columns, TextColumn("{task.description}"), console=Console())
            self.task: TaskID = self.progress.add_task("", total=steps, completed=done)
            self.progress.start()

    def __call__(self, report: Report) -> None:
        if isinstance(report, ValidationReport):
            self.validation = f"  validation {report.loss:.4f}"
            self._say(f"step {report.step}/{self.steps}  validation loss {report.loss:.4f} ({report.samples} samples)")
            return
        self.waited, self.trained = self.waited + report.wait_s, self.trained + report.seconds
        line = _LINE.format(
            loss=report.loss,
            images=report.images_per_s,
            tokens=report.tokens_per_s,
            wait=self.waited / self.trained,
        )
        if self.peak:
            line += f"  MFU {utilisation(report.flops, report.seconds, self.peak):.1%}"
        if self.progress:
            self.progress.update(self.task, completed=report.step, description=line + self.validation)
        elif report.step % self.every == 0 or report.step == self.steps:
            left = (self.steps - report.step) * (time.monotonic() - self.started) / (report.step - self.first)
            self._say(f"step {report.step}/{self.steps}  {line}  {left:.0f} s left")

    def _say(self, line: str) -> None:
        if not self.progress:
            print(line, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.progress:
            self.progress.stop()
