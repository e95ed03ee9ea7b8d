"""Where a step's time goes: seconds by phase, from the host's clock, or on CUDA from events on the device's stream.

Events are read after the step's one wait for the device, so measuring adds none.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Split:
    """Add up phases of a step with `with split("forward"):`, then `read` them once the device has been waited for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, phase: str, *, host: bool = False) -> Iterator[None]:
        """Time the block as `phase`; `host` where it is the host that works or waits in it."""
        if host or self._device.type != "cuda":
            start = time.perf_counter()
            try:
                yield
            finally:
                self._host[phase] = self._host.get(phase, 0.0) + time.perf_counter() - start
            return
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        try:
            yield
        finally:
            last.record()
            self._events.append((phase, first, last))

    def read(self) -> dict[str, float]:
        """Seconds by phase since the last reading; an event not reached yet counts for the next one."""
        seconds, waiting = self._host, []
        for phase, first, last in self._events:
            if last.query():
                seconds[phase] = seconds.get(phase, 0.0) + first.elapsed_time(last) / 1000
            else:
                waiting.append((phase, first, last))
        self._host, self._events = {}, waiting
        return {phase: round(value, 6) for phase, value in seconds.items()}
