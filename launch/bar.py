"""Progress of a long command for people: one line redrawn on a terminal, elsewhere a line now and then."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text


class Bar:
    """A line of progress, printed every `every_s` seconds where output is no terminal; `columns` follow it on one."""

    def __init__(self, every_s: float, *columns: ProgressColumn) -> None:
        self._every_s = every_s
        self._last: float | None = None
        self._bar: RichProgress | None = None
        if sys.stdout.isatty():
            shown = TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(), *columns
            self._bar = RichProgress(*shown, console=Console(), transient=True)
            self._task = self._bar.add_task("starting")
            self._bar.start()

    def show(self, line: str, done: int, total: int, *, now: bool = False) -> None:
        """Say `line`; where lines are printed, at once if it is the first or the last, or if told so by `now`."""
        if self._bar:
            self._bar.update(self._task, description=line, completed=done, total=total)
            return
        time_s = time.monotonic()
        if now or self._last is None or done == total or time_s - self._last >= self._every_s:
            self._last = time_s
            print(line, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar:
            self._bar.stop()


def plain(text: str) -> Text:
    """Keys, reasons and what models say are data: no markup, and nothing that a terminal would obey."""
    return Text("".join(char if char.isprintable() else "?" for char in text))
