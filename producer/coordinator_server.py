"""The coordinator behind Arrow Flight: one action a message, and a wait for units that are not ready yet."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from producer.api.channel import Access, RefusedError, gate, shut
from producer.api.protocol import (
    Ack,
    Failed,
    Goodbye,
    Granted,
    Hello,
    Lease,
    Locate,
    Located,
    Lost,
    Propose,
    Register,
    Registered,
    Welcome,
    decode,
    encode,
)
from producer.api.unit import UnitId
from producer.balance import hold
from producer.coordinator import Coordinator, Limits
from producer.guard import GuardedServer, Traffic
from producer.journal import Journal, first_line

# The longest a trainer's question is held; it asks again.
WAIT_S = 20.0
TRAFFIC = Traffic()


class CoordinatorServer(GuardedServer):
    """Listens on `host`:`port` (0: any free one) from construction to `stop`."""

    def __init__(
        self,
        offer: Welcome,
        limits: Limits,
        *,
        host: str,
        port: int,
        access: Access | str,
        traffic: Traffic = TRAFFIC,
        journal: Path | None = None,
    ) -> None:
        """`journal` keeps the recipes; JournalError if it is another fleet's. Without it they end with this object."""
        self._journal = Journal(journal, first_line(offer))
        self._rules = Coordinator(offer, limits, time.monotonic(), self._journal)
        self._lock = threading.Lock()
        self._waiting: dict[UnitId, list[threading.Condition]] = {}
        self._stopped = False
        self._answers: dict[str, Callable[[bytes], object]] = {
            "lease": self._lease,
            "register": self._register,
            "failed": lambda raw: self._locked(self._rules.failed, decode(Failed, raw)),
            "hello": self._hello,
            "locate": self._locate,
            "ack": lambda raw: self._locked(self._rules.ack, decode(Ack, raw)),
            "lost": lambda raw: self._locked(self._rules.lost, decode(Lost, raw)),
            "goodbye": lambda raw: self._locked(self._rules.goodbye, decode(Goodbye, raw)),
            "propose": lambda raw: self._locked(self._rules.propose, decode(Propose, raw)),
            "recipes": lambda raw: self._locked(lambda _, now: self._rules.recipes(now), None),
        }
        super().__init__(gate(host, port, access), traffic)
        self.address = f"{host}:{self.port}"

    def answer(self, kind: str, body: bytes) -> bytes:
        """Answer one message."""
        if kind == "status":
            return json.dumps(self.status()).encode()
        if kind not in self._answers:
            raise RefusedError(f"no action {kind[:80]!r}; there are {sorted(self._answers)} and status")
        return encode(self._answers[kind](body))

    def status(self) -> dict[str, object]:
        """Counters for people."""
        with self._lock:
            return self._rules.status(time.monotonic())

    def stop(self) -> None:
        """End the waits, then the server; returns within a second."""
        with self._lock:
            self._stopped = True
            for unit in list(self._waiting):
                self._wake(unit)
            self._journal.close()
        shut(self, 1.0)

    def _locked(self, rule: Callable[[Any, float], object], message: object) -> object:
        with self._lock:
            return rule(message, time.monotonic())

    def _hello(self, raw: bytes) -> object:
        message = decode(Hello, raw)
        hold(self._rules.offer.balance, message)
        return self._locked(self._rules.hello, message)

    def _lease(self, raw: bytes) -> Granted:
        message = decode(Lease, raw)
        with self._lock:
            return self._grant(message)

    def _register(self, raw: bytes) -> Registered:
        message = decode(Register, raw)
        with self._lock:
            answer = self._rules.register(message, time.monotonic())
            self._wake(message.unit)
            then = message.then
            if then and not answer.accepted:
                then = replace(then, holding=tuple(unit for unit in then.holding if unit != message.unit))
            return Registered(answer.accepted, answer.reason, self._grant(then) if then else None)

    def _grant(self, message: Lease) -> Granted:
        granted = self._rules.lease(message, time.monotonic())
        for unit in self._waiting.keys() & message.holding:
            self._wake(unit)
        return granted

    def _locate(self, raw: bytes) -> Located:
        message = decode(Locate, raw)
        end = time.monotonic() + min(max(message.wait_s, 0.0), WAIT_S)
        with self._lock:
            while True:
                found = self._rules.locate(message, time.monotonic())
                left = end - time.monotonic()
                if found.address or left <= 0 or self._stopped:
                    return found
                self._wait(message.unit, left)

    def _wait(self, unit: UnitId, seconds: float) -> None:
        mine = threading.Condition(self._lock)
        self._waiting.setdefault(unit, []).append(mine)
        if not mine.wait(seconds) and mine in self._waiting.get(unit, ()):
            # Else it was woken between its time's end and here.
            self._waiting[unit].remove(mine)
            if not self._waiting[unit]:
                del self._waiting[unit]

    def _wake(self, unit: UnitId) -> None:
        for waiting in self._waiting.pop(unit, []):
            waiting.notify()
