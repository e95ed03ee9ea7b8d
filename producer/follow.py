"""How a worker follows the recipe journal: told by the coordinator, compiled aside while earlier units are made."""

import logging
import threading
from collections.abc import Callable, Sequence

from producer.api.protocol import Welcome
from producer.api.unit import UnitId
from producer.journal import Line, check_chain, first_line, from_text, in_force

log = logging.getLogger(__name__)

_RETRY_S = (1.0, 60.0)  # between tries at a line that cannot be compiled, as where its index is not here yet


class Follower:
    """The lines one worker knows. `adopt` makes its maker work by the next one; it may take long and may raise."""

    def __init__(self, name: str, offer: Welcome, adopt: Callable[[Line], None]) -> None:
        self._name, self._adopt = name, adopt
        self._lines: tuple[Line, ...] = (first_line(offer),)
        self._adopted = 1
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def plan(self) -> str:
        """The newest plan it knows of."""
        return self._lines[-1].id

    @property
    def until(self) -> int:
        """The first step of which no unit can be made yet; -1 if there is none."""
        return min((line.from_step for line in self._lines[self._adopted :]), default=-1)

    def plan_of(self, unit: UnitId) -> str:
        """The plan that makes `unit`."""
        return (in_force(self._lines, unit.step) if unit.stream == "train" else self._lines[0]).id

    def tell(self, texts: Sequence[str]) -> Callable[[UnitId], bool]:
        """Take note of further lines; which units they make otherwise. JournalError if they do not follow."""
        lines = [line for line in map(from_text, texts) if line.number >= len(self._lines)]
        if not lines:
            return lambda unit: False
        check_chain((self._lines[-1], *lines))
        step = lines[0].from_step
        self._lines = (*self._lines, *lines)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._compile, name=f"{self._name}-compile", daemon=True)
            self._thread.start()
        return lambda unit: unit.stream == "train" and unit.step >= step

    def stop(self) -> None:
        """End between two lines."""
        self._stopped.set()

    def _compile(self) -> None:
        pause, longest = _RETRY_S
        while self._adopted < len(self._lines) and not self._stopped.is_set():
            line = self._lines[self._adopted]
            try:
                self._adopt(line)
            except Exception as error:
                # Also what nobody foresaw: units of earlier steps are still made, and this is said until it is mended.
                log.error("%s: entry %d of the journal cannot be followed: %s", self._name, line.number, error)
                self._stopped.wait(pause)
                pause = min(longest, 2 * pause)
                continue
            log.info("%s: entry %d of the journal is compiled, from step %d", self._name, line.number, line.from_step)
            self._adopted += 1
            pause = _RETRY_S[0]
