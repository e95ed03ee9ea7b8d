"""Actors on Ray that hold the model, each asked about a batch at a time.

A batch that ends its actor is asked about again sample by sample; a sample that does so by itself is left out and
counted. Another actor takes the place of one that is gone, and is asked once it has its model.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from producer.annotate.config import AnnotateConfig, AnnotateError
from producer.annotate.course import (
    Batch,
    Course,
    Step,
    batch_from_json,
    batch_to_json,
    steps_from_json,
    steps_to_json,
)
from producer.annotate.entry import Failure
from producer.annotate.local import Local
from producer.annotate.store import CAPTION, FUSED
from producer.source.reader import SourceConfig, open_source
from producer.source.shard import SourceError

_DETAIL = 300  # characters of an error that are kept
_DEATHS = 3  # of actors while starting, in a row, that are borne


class Host:
    """The actor. Everything that passes is JSON."""

    def __init__(self, config: str, source: str) -> None:
        self._settings = config, source
        self._course: Course | None = None

    def ready(self) -> str:
        """Load the model; why it cannot be, or nothing."""
        try:
            self._load()
        except (AnnotateError, SourceError) as error:
            return str(error)
        return ""

    def ask(self, batch: str) -> str:
        """The steps of `batch`, as course.steps_to_json writes them."""
        return steps_to_json(list(self._load()(batch_from_json(batch))))

    def _load(self) -> Course:
        if self._course is None:
            config = AnnotateConfig.model_validate_json(self._settings[0], strict=True)
            source = SourceConfig.model_validate_json(self._settings[1], strict=True)
            self._course = Course(config, Local(config), open_source(source))
        return self._course


class Actors:
    """The actors of `config.local`; a context, which starts them and ends them."""

    def __init__(self, config: AnnotateConfig, source: SourceConfig) -> None:
        assert config.local is not None
        self._config, self._local, self._source = config, config.local, source
        self._stack = ExitStack()
        self._free: deque[Any] = deque()
        # By the reference of the answer: who is asked, and about what; about nothing where it is starting.
        self._busy: dict[Any, tuple[Any, Batch | None]] = {}
        self._again: deque[Batch] = deque()
        self._deaths = 0  # of actors while starting, in a row

    def __enter__(self) -> "Actors":
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for host in (*self._free, *(host for host, _ in self._busy.values())):
            ray.kill(host)
        self._stack.close()

    def run(self, batches: Iterator[Batch]) -> Iterator[list[Step | Batch]]:
        """What comes of `batches`, as it comes: their steps, and each of them, or of its parts, when it is over."""
        import ray

        upcoming = next(batches, None)
        while True:
            while self._free and (batch := self._again.popleft() if self._again else upcoming):
                if batch is upcoming:
                    upcoming = next(batches, None)
                host = self._free.popleft()
                self._busy[host.ask.remote(batch_to_json(batch))] = host, batch
            if not (upcoming or self._again or any(batch for _, batch in self._busy.values())):
                return
            done, _ = ray.wait(list(self._busy), num_returns=1, timeout=self._config.stall_s)
            if not done:
                raise AnnotateError(
                    f"annotate.stall_s: no batch was finished for {self._config.stall_s:g} s; what is done is kept, "
                    "run it again to go on"
                )
            yield self._take(done[0])

    def rest(self) -> list[Step | Batch]:
        """What came and was not given out yet."""
        import ray

        asked = [reference for reference, (_, batch) in self._busy.items() if batch]
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=0) if asked else ([], [])
        return [one for reference in done for one in self._take(reference)]

    def _take(self, reference: Any) -> list[Step | Batch]:
        import ray

        host, batch = self._busy.pop(reference)
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            # The actor lives on: it had too little memory for this, or met what nobody foresaw.
            self._free.append(host)
            why = _why(error)
        except ray.exceptions.RayError as error:
            why = _why(error)
            self._replace(host, starting=batch is None, why=why)
        else:
            return self._answered(host, batch, answer)
        if batch is None:
            return []
        if len(batch.rows) > 1:
            self._again.extend(replace(batch, rows=(row,)) for row in batch.rows)
            return []
        (row,) = batch.rows
        return [Step(FUSED if row.seen else CAPTION, batch, (), (Failure(row.key, "broken off", why),)), batch]

    def _answered(self, host: Any, batch: Batch | None, answer: str) -> list[Step | Batch]:
        if batch is None and answer:
            raise AnnotateError(answer)
        self._free.append(host)
        self._deaths = 0
        return [*steps_from_json(answer, batch), batch] if batch else []

    def _replace(self, host: Any, *, starting: bool, why: str) -> None:
        """Start another actor for one that is gone; AnnotateError where those die before they can be asked."""
        import ray

        ray.kill(host)
        self._deaths += starting
        if self._deaths > _DEATHS:
            raise AnnotateError(f"annotate.local: {self._deaths} actors in a row died while starting: {why}")
        another = self._host()
        self._busy[another.ready.remote()] = another, None

    def _host(self) -> Any:
        import ray

        options = {
            "num_cpus": self._local.cpus_per_actor,
            "num_gpus": self._local.gpus_per_actor,
            "scheduling_strategy": "SPREAD",
        }
        said = self._config.model_dump_json(), self._source.model_dump_json()
        return ray.remote(Host).options(**options).remote(*said)

    def _start(self) -> None:
        import ray

        from producer.cluster import cluster

        local = self._local
        self._stack.enter_context(
            cluster(local.address, object_store_bytes=local.object_store_mb << 20, setting="annotate.local.address")
        )
        self._free.extend(self._host() for _ in range(local.actors))
        try:
            answers = ray.get([host.ready.remote() for host in self._free], timeout=local.start_s)
        except ray.exceptions.GetTimeoutError:
            raise AnnotateError(
                f"annotate.local.start_s: {local.actors} actors of {local.cpus_per_actor:g} CPUs and "
                f"{local.gpus_per_actor:g} GPUs did not start within {local.start_s:g} s; is there room for them?"
            ) from None
        except ray.exceptions.RayError as error:
            raise AnnotateError(f"annotate.local: an actor died while starting: {_why(error)}") from None
        for why in filter(None, answers):
            raise AnnotateError(why)


def _why(error: Exception) -> str:
    """A Ray error without its traceback."""
    cause = getattr(error, "cause", None) or error
    said = f"{type(cause).__name__}: {cause}".splitlines()[0]
    return said[:_DETAIL]
