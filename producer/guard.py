"""A Flight server that takes what it knows, at a bounded rate, and says nothing of its inside.

Everything a caller can reach goes through here: what is foreseen leaves as a refusal with its reason, what is not as a
number that the server's own log explains.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow.flight as flight

from producer.api.channel import MESSAGE_LIMIT, RefusedError, refusal
from producer.api.protocol import ProtocolError

log = logging.getLogger(__name__)
T = TypeVar("T")

_HOSTS = 4096  # remembered at once


@dataclass(frozen=True)
class Traffic:
    """How much a server takes. Who is over it is told to come again, as if the server were away."""

    at_once: int = 8192  # calls, held questions among them; each has a thread
    per_s: float = 2000.0  # calls from one host, in the long run; a host's ranks and workers make some tens
    burst: float = 4000.0  # at once, after a pause


class Turnstile:
    """Counts calls in and out."""

    def __init__(self, traffic: Traffic, clock: Callable[[], float] = time.monotonic) -> None:
        self._traffic, self._clock = traffic, clock
        self._lock = threading.Lock()
        self._inside = 0
        self._hosts: dict[str, tuple[float, float]] = {}  # calls left, and when that was so
        self.turned_away = 0

    @contextmanager
    def passing(self, peer: str) -> Iterator[None]:
        """For the time of one call from `peer`, as gRPC writes it; FlightUnavailableError if it is one too many."""
        with self._lock:
            reason = self._full(_host(peer))
            self.turned_away += bool(reason)
            self._inside += not reason
        if reason:
            raise flight.FlightUnavailableError(f"busy: {reason}; try again")
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    def _full(self, host: str) -> str:
        traffic, now = self._traffic, self._clock()
        if self._inside >= traffic.at_once:
            return f"{self._inside} calls at once"
        left, since = self._hosts.get(host, (traffic.burst, now))
        left = min(traffic.burst, left + (now - since) * traffic.per_s)
        if len(self._hosts) >= _HOSTS and host not in self._hosts:
            # The longest silent is most likely to have all its allowance back.
            del self._hosts[next(iter(self._hosts))]
        self._hosts.pop(host, None)
        self._hosts[host] = (left - (left >= 1), now)
        return "" if left >= 1 else f"more than {traffic.per_s:g} calls/s from one host"


class GuardedServer(flight.FlightServerBase):  # type: ignore[misc]
    """Answers `answer` and `stream`, which say no by RefusedError or ProtocolError."""

    def __init__(self, options: dict[str, Any], traffic: Traffic) -> None:
        """`options` are of `gate`."""
        self.turnstile = Turnstile(traffic)
        options["middleware"] = {"method": MethodGate()} | options["middleware"]
        super().__init__(**options)

    def answer(self, kind: str, body: bytes) -> bytes:
        """The answer to one message."""
        raise RefusedError(f"no action {kind[:80]!r} here")

    def stream(self, ticket: bytes) -> flight.RecordBatchStream:
        """What the ticket is for."""
        raise RefusedError("nothing is streamed from here")

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> list[bytes]:
        """Flight's side of `answer`."""
        if action.body.size > MESSAGE_LIMIT:
            raise refusal(f"a message of {action.body.size} bytes; at most {MESSAGE_LIMIT} are taken")
        return [self._guarded(context, action.type, lambda: self.answer(action.type, action.body.to_pybytes()))]

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.RecordBatchStream:
        """Flight's side of `stream`."""
        if len(ticket.ticket) > MESSAGE_LIMIT:
            raise refusal(f"a ticket of {len(ticket.ticket)} bytes; at most {MESSAGE_LIMIT} are taken")
        return self._guarded(context, "do_get", lambda: self.stream(ticket.ticket))

    def _guarded(self, context: flight.ServerCallContext, what: str, call: Callable[[], T]) -> T:
        with self.turnstile.passing(context.peer()):
            try:
                return call()
            except (RefusedError, ProtocolError) as error:
                raise refusal(str(error)) from None
            except Exception:
                number = secrets.token_hex(4)
                log.exception("%s failed, error %s", what[:80], number)
                # Without a reason of ours the caller takes it for a fault that passes.
                raise flight.FlightInternalError(f"internal error {number}; see the server's log") from None


class MethodGate(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Refuses what of Flight is not used: left alone, pyarrow answers that with a traceback."""

    def start_call(self, info: flight.CallInfo, headers: object) -> None:
        """Flight calls this first; an error ends the call."""
        if info.method not in (flight.FlightMethod.DO_ACTION, flight.FlightMethod.DO_GET):
            raise refusal(f"{info.method.name} is not answered here")


def _host(peer: str) -> str:
    """Of ipv4:10.0.0.1:4711, ipv6:[::1]:4711 or unix:, what is the same for all connections of a machine."""
    return peer.rpartition(":")[0] or peer
