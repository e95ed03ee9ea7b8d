"""How long each stage of encoding was busy and over how many samples: counters that any thread adds to."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """Counters by name: STAGE_seconds and STAGE_samples of each stage, and any others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @contextmanager
    def __call__(self, stage: str, samples: int = 1) -> Iterator[None]:
        """Count what runs inside as `stage` of `samples`, also where it fails."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(f"{stage}_seconds", time.perf_counter() - start)
            self.add(f"{stage}_samples", samples)

    def add(self, name: str, more: float = 1) -> None:
        """Add `more` to the counter `name`."""
        with self._lock:
            self._counts[name] += more  # type: ignore[assignment]

    def clear(self) -> None:
        """Begin anew."""
        with self._lock:
            self._counts.clear()

    def counts(self) -> dict[str, float]:
        """All counters as they are now."""
        with self._lock:
            return dict(self._counts)
