"""Ending on a signal: asked for by SIGINT, SIGTERM or SIGUSR1, agreed on at a step's end, forced after a grace period.

    signal    code   status.json           for
    SIGINT    130    interrupted           Ctrl-C; not to be started again
    SIGUSR1   138    saved on request      an operator, or a scheduler that warns ahead of its time limit
    SIGTERM   143    preempted             a scheduler that takes the machine back

A signal to one rank is enough: `said()` rides in the maximum over ranks that every step takes, and the greatest code
wins, so that being preempted is what a launcher reads if several signals came. A rank that waits for data takes no
step: it hears of the signal through `relay`, and waits no longer.
"""

import atexit
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from consumer.endings import cause_of_signal, in_time, write_status

_WRITE_S = 3.0  # for the last word
_RELAY_S = 0.5  # between two looks whether another rank was asked
_HUSH_S = 2.0  # for the last look to end
SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)


class Call(Protocol):
    """A number that any rank calls out to all (parallel/board.py); RuntimeError once the ranks are gone."""

    def out(self, number: int) -> None:
        """Let every rank hear `number`."""

    def heard(self) -> int:
        """What was called out, or 0."""


class Stop:
    """Install once, in the main thread. `code` is 0, or 128 + the signal that asked for the end.

    After the first signal the loop has `grace_s` to save and end. Then the process is ended with the same code, and
    `status.json` in `folder` says so; the loop keeps `step` at the steps done.
    """

    def __init__(self, grace_s: float, folder: Path | None = None, run: str = "") -> None:
        self.code, self.step = 0, 0
        self._grace_s, self._folder, self._run = grace_s, folder, run
        self._then: list[Callable[[], object]] = []
        self._closed = threading.Event()
        self._deaf = threading.Event()  # nobody listens to other ranks any more
        # Python runs a handler between two bytecodes of the main thread: never while it waits for a peer that is gone.
        # The interpreter's C handler writes the signal's number here at once, and a thread acts on it.
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before: dict[int, Any] = {number: signal.signal(number, self._ask) for number in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="stop", daemon=True)
        self._thread.start()

    def said(self) -> int:
        """This rank's code, for the step's maximum over ranks."""
        return self.code

    def heard(self, worst: int) -> int:
        """Take that maximum, on every rank: the code to end with after this step, or 0. Grace runs from here too."""
        if worst and not self.code:
            os.write(self._write, bytes([worst - 128]))
        self.code = worst or self.code
        return worst

    def then(self, act: Callable[[], object]) -> None:
        """Call `act` once an end is asked for, from another thread; now, if that has happened."""
        self._then.append(act)
        if self.code:
            act()

    def relay(self, call: Call) -> None:
        """Tell the other ranks of a signal at once, and hear of theirs."""
        self.then(lambda: self._beside(lambda: call.out(self.code)))  # the grace goes on where the store hangs
        listening = self._beside(lambda: self._overhear(call))
        # A thread inside torch's store while the interpreter goes away would abort the process.
        atexit.register(self._hush, listening)

    def close(self) -> None:
        """Give the signals back and force no end any more. A run does without: its own end may hang as well."""
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._closed.set()
        self._deaf.set()
        os.close(self._write)
        self._thread.join(1)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.code = self.code or 128 + number  # a second signal changes nothing

    def _beside(self, act: Callable[[], None]) -> threading.Thread:
        def quietly() -> None:
            with suppress(RuntimeError):  # the store goes with the job
                act()

        thread = threading.Thread(target=quietly, name="relay", daemon=True)
        thread.start()
        return thread

    def _overhear(self, call: Call) -> None:
        while not self.code and not self._deaf.wait(_RELAY_S):
            code = call.heard()
            if code and not self._deaf.is_set():
                self.heard(code)

    def _hush(self, listening: threading.Thread) -> None:
        self._deaf.set()
        listening.join(_HUSH_S)

    def _listen(self) -> None:
        asked: list[int] = []
        while not asked:
            said = os.read(self._read, 64)
            if not said:
                break
            asked = [number for number in said if number in SIGNALS]
        if asked:
            self.code = self.code or 128 + asked[0]
            for act in self._then:
                act()
            if not self._closed.wait(self._grace_s):
                self._force()
        os.close(self._read)

    def _force(self) -> None:
        said = f"the step did not end within {self._grace_s:g} s of the signal; ended without a save"
        cause, folder = cause_of_signal(self.code - 128), self._folder
        if folder is not None:
            in_time(lambda: write_status(folder, cause, step=self.step, message=said, run=self._run), _WRITE_S)
        os._exit(self.code)
