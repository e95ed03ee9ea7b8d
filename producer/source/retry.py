"""Trying again what may work in a moment: bounded in number and in time, with growing, random waits between."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Waits double from the first to the last, each drawn between zero and that ("full jitter", AWS Architecture Blog,
# "Exponential Backoff And Jitter", 2015), so that a fleet that failed at once does not come back at once.
_FIRST_WAIT_S = 0.1
_LAST_WAIT_S = 10.0


class TransientError(Exception):
    """Worth another try; the message says what happened."""


class GaveUpError(Exception):
    """No try worked; the message says how many, how long, and what the last one met."""


def persist(call: Callable[[float], T], *, tries: int, deadline_s: float) -> T:
    """What `call` gives, which gets the seconds that are left, and is tried again after a TransientError."""
    began = time.monotonic()
    for number in range(1, tries + 1):
        left = began + deadline_s - time.monotonic()
        try:
            return call(max(left, 0.001))
        except TransientError as error:
            why = str(error)
        wait = pause_s(number)
        spent = time.monotonic() - began
        if number == tries or spent + wait >= deadline_s:
            break
        time.sleep(wait)
    raise GaveUpError(f"{why} ({number} {'try' if number == 1 else 'tries'} in {spent:.1f} s)")


def pause_s(number: int) -> float:
    """Seconds to wait after try `number`, counted from 1."""
    return random.uniform(0, min(_LAST_WAIT_S, _FIRST_WAIT_S * 2 ** (number - 1)))
