"""The conversation with the producers: where units are, and getting one; questions go over Arrow Flight.

Workers and coordinator may be killed, frozen or restarted: each call here is one try, with a deadline.
"""

import json
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pydantic import BaseModel, Field, model_validator

from consumer.source.plans import Plans
from consumer.source.streams import Arrived, Streams
from producer.api.channel import Access, Channel, RefusedError, RegistryError, UnreachableError, read_registry
from producer.api.malloc import tune
from producer.api.protocol import Answer, Goodbye, Locate, Located, Lost, ProtocolError, Welcome
from producer.api.tls import Tls
from producer.api.unit import UnitError, UnitId, unpack

log = logging.getLogger(__name__)
T = TypeVar("T")

POLL_S = 1.0  # how long the coordinator holds a question before it says "not yet"

_PAUSE_S = 0.2  # before the next try after nobody answered
_TOLD_S = 1.0  # that a place which was said along with another unit's is believed
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
        self._places: dict[UnitId, tuple[float, Located]] = {}  # said along with others', and when
        self._asked: set[UnitId] = set()  # along with others, and not answered yet
        self._lock = threading.Condition()  # guards these; told of answers
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
        wait_s = POLL_S if kind == "locate" else 0.0
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

    def attempt(self, unit: UnitId, more: Sequence[UnitId] = ()) -> tuple[Arrived | None, str]:
        """One try to get `unit`: the unit, or why there is none yet. SourceError if it is in vain.

        `more` will be wanted next: their places are asked for along, where a question is needed at all.
        """
        try:
            found = self._told(unit) or self._located(unit, more)
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

    def _located(self, unit: UnitId, more: Sequence[UnitId]) -> Located:
        plan = self.plans.at(self.handed).plan if self.plans and self.handed >= 0 else ""
        said = Locate(self.trainer, self.incarnation, self.step, unit, POLL_S, self.handed, plan, tuple(more))
        with self._lock:
            self._asked.update(more)
        try:
            found = self.ask("locate", said, Located)
            now = time.monotonic()
            with self._lock:
                for other, address in zip(more, found.more, strict=False):
                    if address:
                        self._places[other] = now, replace(found, address=address)
            return found
        finally:
            with self._lock:
                self._asked.difference_update(more)
                self._lock.notify_all()

    def _told(self, unit: UnitId) -> Located | None:
        """Where `unit` was said to be a moment ago, along with another; once. Waits for an answer under way."""
        with self._lock:
            self._lock.wait_for(lambda: unit not in self._asked, self.config.call_s)
            since, found = self._places.pop(unit, (-_TOLD_S, None))
        return found if time.monotonic() - since < _TOLD_S else None

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
