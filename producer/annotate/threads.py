"""Threads of this process that ask a server, each about one sample at a time."""

import queue
import threading
from collections.abc import Iterator

from producer.annotate.config import AnnotateConfig, AnnotateError
from producer.annotate.course import Batch, Course, Step
from producer.annotate.server import Server
from producer.source.reader import SourceConfig, open_source

_END_S = 5.0


class Threads:
    """As many threads as requests may be on their way at once; a context."""

    def __init__(self, config: AnnotateConfig, source: SourceConfig) -> None:
        assert config.server is not None
        self._config, self._count = config, config.server.concurrency
        self._server = Server(config)
        self._course = Course(config, self._server, open_source(source))
        self._in: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._out: queue.SimpleQueue[Step | Batch | BaseException] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._ended = False

    def __enter__(self) -> "Threads":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._server.close()
        for _thread in self._threads:
            self._in.put(None)
        for thread in self._threads:
            thread.join(_END_S)

    def run(self, batches: Iterator[Batch]) -> Iterator[list[Step | Batch]]:
        """What comes of `batches`, as it comes: their steps, and each of them itself when it is over."""
        waiting = 0
        while True:
            while waiting < self._count and (batch := next(batches, None)):
                self._hand(batch)
                waiting += 1
            if not waiting:
                return
            came = [self._next(), *self.rest()]
            waiting -= sum(isinstance(one, Batch) for one in came)
            yield came

    def rest(self) -> list[Step | Batch]:
        """What came and was not given out yet."""
        came: list[Step | Batch] = []
        while not self._out.empty():
            one = self._out.get()
            if isinstance(one, BaseException):
                # Said by the next call that waits, or never where the run has ended anyway.
                self._out.put(one)
                break
            came.append(one)
        return came

    def _next(self) -> Step | Batch:
        try:
            one = self._out.get(timeout=self._config.stall_s)
        except queue.Empty:
            raise AnnotateError(
                f"annotate.stall_s: no sample was finished for {self._config.stall_s:g} s; what is done is kept, run "
                "it again to go on"
            ) from None
        if isinstance(one, BaseException):
            raise one
        return one

    def _hand(self, batch: Batch) -> None:
        if len(self._threads) < self._count:
            name = f"annotate-{len(self._threads)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._in.put(batch)

    def _work(self) -> None:
        while (batch := self._in.get()) is not None and not self._ended:
            try:
                for step in self._course(batch):
                    self._out.put(step)
                self._out.put(batch)
            except BaseException as error:
                self._out.put(error)
                return
