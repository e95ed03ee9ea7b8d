"""What is watched must not end what is trained."""

import logging
from collections.abc import Callable

from consumer.metrics import Report, Sink

log = logging.getLogger(__name__)


class Lenient:
    """A sink that is left out from its first failure on, which a warning names once; `name` is what people call it."""

    def __init__(self, name: str, open_: Callable[[], Sink]) -> None:
        """`open_` may fail like the rest: what a person can set wrong is checked on every rank before."""
        self.name = name
        self._sink: Sink | None = None
        try:
            self._sink = open_()
        except Exception as error:
            self._leave_out(error)

    def __call__(self, report: Report) -> None:
        if self._sink is not None:
            try:
                self._sink(report)
            except Exception as error:  # of a stranger's library as well
                self._leave_out(error)

    def close(self) -> None:
        """Close it, if it still listens."""
        sink, self._sink = self._sink, None
        if sink is not None:
            try:
                sink.close()
            except Exception as error:
                self._leave_out(error)

    def _leave_out(self, error: Exception) -> None:
        self._sink = None
        log.warning(
            "%s: %s: %s; training goes on, and nothing more is reported there", self.name, type(error).__name__, error
        )
