"""Ending on a signal: asked for by SIGINT or SIGTERM, agreed on at a step's end, forced after a grace period."""

import os
import signal
import threading
from types import FrameType


class Stop:
    """Install once in the main thread. `code` is 0, or 128 + the signal that asked for the end."""

    def __init__(self, grace_s: float) -> None:
        self.code, self.grace_s = 0, grace_s
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.code:
            return  # a second signal changes nothing
        self.code = 128 + number
        # A rank that waits for a peer that is gone never reaches the end of its step.
        timer = threading.Timer(self.grace_s, os._exit, (self.code,))
        timer.daemon = True
        timer.start()
