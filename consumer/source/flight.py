"""Units from the producers over Arrow Flight, pulled ahead of need by a thread.

Workers and coordinator may be killed, frozen or restarted: that costs waiting, up to `wait_s` for one unit, and nothing
else. Every call has a deadline, and a watchdog cancels a transfer that began and does not end.
"""

import atexit
import json
import logging
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pydantic import BaseModel, Field, model_validator

from consumer.source.plans import Plans
from consumer.source.streams import Arrived, Streams
from producer.api.channel import Access, Channel, RefusedError, RegistryError, UnreachableError, read_registry
from producer.api.malloc import tune
from producer.api.protocol import Ack, Answer, Goodbye, Hello, Locate, Located, Lost, ProtocolError, Welcome
from producer.api.tls import Tls
from producer.api.unit import UnitError, UnitId, unpack

log = logging.getLogger(__name__)
T = TypeVar("T")

_POLL_S = 1.0  # how long the coordinator holds a question before it says "not yet"
_PAUSE_S = 0.2  # before the next try after nobody answered
_WATCH_S = 0.1
_CLOSE_S = 2.0
_HURRY_S = 1.0
_GOODBYE_S = 1.0
_DAMAGED = 8  # times that one unit may arrive damaged, each time made again


class SourceError(ValueError):
    """The producers cannot be reached, refuse this trainer, or did not deliver in time; the message says which."""


class PullConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """Where the producers are, and how long to wait for them."""

    registry: Path | None = None  # the file in which a fleet says where its coordinator listens; or ...
    address: str = ""  # ... host:port of the coordinator
    token: Path | None = None  # the fleet's token file; with a registry, `token` beside it unless set
    tls: Tls | None = None  # as the fleet's; cert and key only where it asks for them
    prefetch: int = Field(default=8, ge=1)  # units pulled ahead of need by each model-parallel group
    start_s: float = Field(default=30.0, gt=0)  # for the producers' first answer
    call_s: float = Field(default=8.0, gt=0)  # deadline of any one call; a unit must get through in it
    stall_s: float = Field(default=5.0, gt=0)  # for a unit's data once its transfer has begun
    wait_s: float = Field(default=300.0, gt=0)  # for one unit, through all retries; less than mesh.timeout_s

    @model_validator(mode="after")
    def _says_where(self) -> "PullConfig":
        if (self.registry is None) == (not self.address):
            raise ValueError(
                "pull.registry: give the fleet's registry file here, or its coordinator's host:port in pull.address, "
                "and not both"
            )
        if self.address and not re.fullmatch(r"[^\s/]+:\d{1,5}", self.address):
            raise ValueError(f"pull.address: {self.address!r}; write it as host:port, like 10.0.0.1:7000")
        return self

    @property
    def token_file(self) -> Path | None:
        return self.token or (self.registry.with_name("token") if self.registry else None)


class Producers:
    """The conversation with coordinator and workers, one try a call; any thread may use it."""

    def __init__(self, config: PullConfig, trainer: str, incarnation: int) -> None:
        tune()
        self.config, self.trainer, self.incarnation = config, trainer, incarnation
        self.welcome: Welcome | None = None
        self.step = 0  # being trained
        self.handed = -1  # the last step of which units of the schedule came
        self.plans: Plans | None = None  # by which those were made
        self.closed = False
        self._damaged: Counter[UnitId] = Counter()
        self._lock = threading.Lock()
        self._coordinator: Channel | None = None
        self.streams = Streams(self._access, config.call_s)

    @property
    def where(self) -> str:
        """Where the coordinator is looked for, for people."""
        if self.config.registry is None:
            return self.config.address
        try:
            return f"{read_registry(self.config.registry)} (from {self.config.registry})"
        except RegistryError as error:
            return str(error)

    def ask(self, kind: str, message: object, answer: type[T]) -> T:
        """One question to the coordinator. Raises UnreachableError, RegistryError: worth another try; others not."""
        wait_s = _POLL_S if kind == "locate" else 0.0
        return self._reached(lambda to: to.ask(kind, message, answer, min(self.config.call_s, wait_s + 3.0)))

    def status(self) -> dict[str, Any]:
        """What the coordinator says of itself; errors as in `ask`. No training's place is taken by asking."""
        return dict(json.loads(self._reached(lambda to: to.ask_raw("status", b"{}", self.config.call_s))))

    def _reached(self, call: Callable[[Channel], T]) -> T:
        channel = self._connect()
        try:
            return call(channel)
        except UnreachableError:
            with self._lock:
                if self._coordinator is channel:
                    self._coordinator = None
            channel.close()
            raise

    def attempt(self, unit: UnitId) -> tuple[Arrived | None, str]:
        """One try to get `unit`: the unit, or why there is none yet. SourceError if it is in vain."""
        plan = self.plans.at(self.handed).plan if self.plans and self.handed >= 0 else ""
        try:
            question = Locate(self.trainer, self.incarnation, self.step, unit, _POLL_S, self.handed, plan)
            found = self.ask("locate", question, Located)
        except (UnreachableError, RegistryError, ProtocolError) as error:
            # Without TLS an answer may also arrive damaged; whose protocol is another was told apart by hello.
            time.sleep(_PAUSE_S)
            return None, str(error)
        except RefusedError as error:
            raise SourceError(str(error)) from None
        if not found.address:
            return None, found.reason
        try:
            arrived = self._checked(unit, self.streams.read(found.address, unit), found)
            self._damaged.pop(unit, None)
            return arrived, ""
        except (UnreachableError, RefusedError, UnitError) as error:
            if self.closed:
                return None, "closed"
            self._damaged[unit] += isinstance(error, UnitError)
            if self._damaged[unit] > _DAMAGED:
                raise SourceError(f"{unit} arrived damaged {_DAMAGED + 1} times, last: {error}") from None
            log.warning("%s not delivered by %s: %s", unit, found.address, error)
            self._report(unit, found.address)
            return None, str(error)

    def answered(self, question: Callable[["Producers"], T]) -> T:
        """The answer to `question`, asked until somebody answers; SourceError after `start_s`."""
        deadline = time.monotonic() + self.config.start_s
        while True:
            try:
                return question(self)
            except (UnreachableError, RegistryError) as error:
                if time.monotonic() + _PAUSE_S > deadline or self.closed:
                    raise SourceError(
                        f"no producers at {self.where} for {self.config.start_s:g} s ({error}); "
                        f"start them with: python launch/produce.py CONFIG"
                    ) from None
                time.sleep(_PAUSE_S)
            except (RefusedError, ProtocolError) as error:
                raise SourceError(f"{self.where}: {error}") from None

    def goodbye(self) -> None:
        """Say once that this trainer is through; if nobody hears it, its silence says so later."""
        try:
            message = Goodbye(self.trainer, self.incarnation)
            self._reached(lambda to: to.ask("goodbye", message, Answer, _GOODBYE_S))
        except (UnreachableError, RegistryError, RefusedError, ProtocolError) as error:
            log.info("goodbye not heard: %s", error)

    def close(self) -> None:
        self.streams.close()
        with self._lock:
            channel, self._coordinator = self._coordinator, None
        if channel:
            channel.close()

    def _connect(self) -> Channel:
        with self._lock:
            if self._coordinator is None:
                registry = self.config.registry
                where = read_registry(registry) if registry else self.config.address
                self._coordinator = Channel(where, self._access())
            return self._coordinator

    def _access(self) -> Access:
        path = self.config.token_file
        try:
            return Access(path.read_text().strip() if path else "", self.config.tls)
        except OSError as error:
            raise RegistryError(f"{path}: {error.strerror}; the producers write their token there") from None

    def _checked(self, unit: UnitId, batch: pa.RecordBatch, found: Located) -> Arrived:
        """`batch` if it is `unit` and whole: what is damaged is found here, where it can be had once more."""
        try:
            header, samples = unpack(batch)
        except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
            raise UnitError(f"{unit}: {error}") from None
        if header.unit != unit:
            raise UnitError(f"asked for {unit}, got {header.unit}")
        if found.plan and header.plan != found.plan:
            raise UnitError(f"{unit} is by plan {header.plan}, and {found.plan} is in force")
        said, plans = self.welcome, self.plans
        if said and plans:
            known = unit.stream != "train" or plans.learn(unit.step, header.plan, found.entry)
            if not known or header.encoder != said.encoder:
                raise SourceError(
                    f"the producers now serve plan {header.plan} by encoder {header.encoder}; this training began with "
                    f"plan {plans.at(unit.step).plan} by {said.encoder}: start them with its config, or start the "
                    "training anew"
                )
        return Arrived(batch, samples, header.plan, found.entry)

    def _report(self, unit: UnitId, address: str) -> None:
        try:
            self.ask("lost", Lost(unit, address, self.trainer, self.incarnation), Answer)
        except (UnreachableError, RegistryError, RefusedError, ProtocolError) as error:
            log.warning("loss of %s not reported: %s", unit, error)


def status(config: PullConfig) -> dict[str, Any]:
    """What the producers' coordinator says of itself; SourceError after `config.start_s`."""
    producers = Producers(config, trainer="", incarnation=0)
    try:
        return producers.answered(Producers.status)
    finally:
        producers.close()


class FlightSource:
    """What one model-parallel group pulls through: `hello`, then `follow` once, then `next_unit` in that order."""

    def __init__(self, config: PullConfig, trainer: str, incarnation: int) -> None:
        self.config = config
        self._producers = Producers(config, trainer, incarnation)
        self._state = threading.Condition()  # guards what follows
        self._ready: deque[tuple[UnitId, Arrived]] = deque()
        self._whole = False  # every unit of the schedule came
        self._error: SourceError | None = None
        self._trouble = "no answer yet"  # why the thread has no unit yet
        self._ack = self._acked = -1
        self._until = float("inf")  # no wait goes on after this
        self._closed = False
        self._puller: threading.Thread | None = None
        self._watcher = self._run(self._watch)
        atexit.register(self.close)

    def hello(self, step: int, plan: str = "", ranks: int = 0) -> Welcome:
        """Say that training starts at `step`, by which `plan` it trained the one before, and how many `ranks` share it.

        The answer is what is in force now. SourceError after `start_s`, or if the producers' journal has another plan
        for the step before.
        """
        self._producers.step = step
        message = Hello(self._producers.trainer, self._producers.incarnation, step, plan, ranks)
        welcome = self._producers.answered(lambda to: to.ask("hello", message, Welcome))
        self._producers.welcome, self._producers.plans = welcome, Plans(step, welcome.plan, welcome.entry)
        return welcome

    def follow(self, schedule: Callable[[int], Sequence[UnitId]], start: int, stop: int) -> None:
        """Pull the units that `schedule` names for the steps from `start` to before `stop`, ahead of need."""
        self._puller = self._run(self._pull, schedule, start, stop)

    def next_unit(self, unit: UnitId) -> pa.RecordBatch:
        """The next unit of the schedule, which is `unit`. SourceError if it does not come within `wait_s`."""
        return self.take(unit).batch

    def take(self, unit: UnitId) -> Arrived:
        """As `next_unit`, with its samples; a unit of another stream than the schedule's is pulled now."""
        if unit.stream != "train":
            return self._fetched(unit)
        deadline = time.monotonic() + self.config.wait_s
        with self._state:
            self._producers.step = unit.step
            while not self._ready:
                if self._error:
                    raise self._error
                left = min(deadline, self._until) - time.monotonic()
                if left <= 0 and self._until < deadline:
                    raise SourceError(f"{unit} is not waited for, since training is asked to end: {self._trouble}")
                if left <= 0:
                    raise self._late(unit, self._trouble)
                self._state.wait(left)
            pulled, arrived = self._ready.popleft()
            assert pulled == unit, f"the schedule has {pulled}, asked for {unit}"
            self._state.notify_all()
            return arrived

    def hurry(self) -> None:
        """Wait a moment longer for a unit of the schedule and then no more: training is asked to end."""
        with self._state:
            self._until = time.monotonic() + _HURRY_S
            self._state.notify_all()

    def fetch(self, unit: UnitId) -> pa.RecordBatch:
        """A unit outside the schedule, pulled now. SourceError if it does not come within `wait_s`."""
        return self._fetched(unit).batch

    def _fetched(self, unit: UnitId) -> Arrived:
        deadline = time.monotonic() + self.config.wait_s
        while not self._closed:
            arrived, trouble = self._producers.attempt(unit)
            if arrived is not None:
                return arrived
            if time.monotonic() > deadline:
                raise self._late(unit, trouble)
        raise SourceError(f"{unit}: this source was closed")

    def ack(self, through: int) -> None:
        """Training will not go back to steps through `through`. Says so in the background, as soon as it can."""
        with self._state:
            self._ack = max(self._ack, through)
            self._state.notify_all()
        if self._puller is None or not self._puller.is_alive():
            self._say_ack()

    def close(self) -> None:
        """End the threads; returns within two seconds, also in the middle of a transfer.

        A training that came to its end says goodbye: nothing more is made for it. Any other may come back.
        """
        atexit.unregister(self.close)
        with self._state:
            ended = self._whole and not self._ready and not self._closed
            self._closed = self._producers.closed = True
            self._ready.clear()
            self._state.notify_all()
        end = time.monotonic() + _CLOSE_S
        for thread in filter(None, (self._puller, self._watcher)):
            while thread.is_alive() and time.monotonic() < end:
                self._producers.streams.cancel(0.0)
                thread.join(0.05)
        if ended:
            self._producers.goodbye()
        self._producers.close()

    def _run(self, target: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, name=f"pull{target.__name__}", daemon=True)
        thread.start()
        return thread

    def _pull(self, schedule: Callable[[int], Sequence[UnitId]], start: int, stop: int) -> None:
        try:
            if all(self._pull_one(unit) for step in range(start, stop) for unit in schedule(step)):
                self._say_ack()
                self._whole = True
        except Exception as error:
            # Whatever it is, the one who waits for a unit must hear of it.
            if not isinstance(error, SourceError):
                log.exception("pulling failed")
                error = SourceError(f"pulling failed: {error!r}")
            with self._state:
                self._error = error
                self._state.notify_all()

    def _pull_one(self, unit: UnitId) -> bool:
        """Append `unit` to those ready, once there is room and it comes; False if the source was closed."""
        while True:
            self._say_ack()
            with self._state:
                if self._closed:
                    return False
                if len(self._ready) >= self.config.prefetch:
                    self._state.wait(_POLL_S if self._ack > self._acked else None)
                    continue
            arrived, trouble = self._producers.attempt(unit)
            with self._state:
                self._trouble = trouble
                if arrived is not None:
                    self._producers.handed = max(self._producers.handed, unit.step)
                    self._ready.append((unit, arrived))
                    self._state.notify_all()
                    return True

    def _say_ack(self) -> None:
        """Tell the coordinator how far it may forget; if it is away, a later one says as much."""
        with self._state:
            through = self._ack
        if through <= self._acked:
            return
        try:
            self._producers.ask("ack", Ack(self._producers.trainer, self._producers.incarnation, through), Answer)
            self._acked = through
        except (UnreachableError, RegistryError, ProtocolError) as error:
            log.info("ack through %d not heard: %s", through, error)
        except RefusedError as error:
            raise SourceError(str(error)) from None

    def _watch(self) -> None:
        while not self._closed:
            self._producers.streams.cancel(self.config.stall_s)
            with self._state:
                self._state.wait(_WATCH_S)

    def _late(self, unit: UnitId, trouble: str) -> SourceError:
        return SourceError(
            f"{unit} did not come within {self.config.wait_s:g} s from {self._producers.where}: {trouble}; "
            "see the producers' logs, or raise pull.wait_s"
        )
