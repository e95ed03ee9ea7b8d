"""How long the phases of a step take, without waiting for the device."""

import time
from itertools import pairwise

import torch


class Phases:
    """One step's phases on this rank: CUDA events on its stream where there is one, the clock elsewhere.

    On CUDA a phase begins when the device reaches it: waiting for data is the time that the device stood idle. The last
    one ends after the loop's one wait, so a step's phases are known a step later.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.start()

    def start(self) -> None:
        """Begin a step; what was measured before is forgotten."""
        self._names: list[str] = []
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []

    def enter(self, phase: str) -> None:
        """The phase before, if any, ends here; `phase` begins. A phase may be entered more than once."""
        self._names.append(phase)
        self._mark()

    def end(self) -> None:
        """The last phase ends here."""
        self._mark()

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase, after `end` and after the device was waited for, as a loop does once a step."""
        assert not self._cuda or all(event.query() for event in self._events), "the device has not been waited for"
        if self._cuda:
            lengths = [one.elapsed_time(then) / 1000 for one, then in pairwise(self._events)]
        else:
            lengths = [then - one for one, then in pairwise(self._times)]
        found: dict[str, float] = {}
        for name, length in zip(self._names, lengths, strict=True):
            found[name] = found.get(name, 0.0) + length
        return found

    def _mark(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())
