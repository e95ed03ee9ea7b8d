"""Flight as both sides use it: a token on every call, a deadline on every call, errors with a meaning.

Serve with `listen`, call with `Channel`, find the coordinator with `read_registry`.
"""

import hmac
import ipaddress
import json
import os
import threading
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.flight as flight
from pyarrow import ipc

from producer.api.protocol import TOKEN_HEADER, ProtocolError, decode, encode
from producer.api.unit import UnitId

T = TypeVar("T")

# A message of the protocol is a few hundred bytes; one that lists what a worker holds, a few hundred kilobytes.
MESSAGE_LIMIT = 4 << 20

_OPTIONS = [
    # Clients of one process share connections, and with them the wait before the next try, unless told otherwise.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
]

# Arrow's own buffers start at odd addresses, which torch refuses; aligning them costs one copy.
_ALIGNED = ipc.IpcReadOptions(ensure_alignment=ipc.Alignment.At64Byte)


class UnreachableError(ConnectionError):
    """The other side did not answer within the deadline: it is starting, gone, stuck or cut off."""


class RefusedError(ValueError):
    """The other side answered no, and will again; the message is its reason."""


class DeniedError(RefusedError):
    """The other side does not know our token."""


class RegistryError(ValueError):
    """The file that says where the coordinator is cannot be used."""


class BindError(ValueError):
    """A server would be open to more than it may be."""


class Channel:
    """A connection to the Flight server at `address` (host:port); calls may run at once, each with its deadline."""

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self._client = flight.FlightClient(f"grpc://{address}", generic_options=_OPTIONS)
        self._headers = [(TOKEN_HEADER.encode(), f"Bearer {token}".encode())]

    def ask(self, kind: str, message: object, answer: type[T], timeout_s: float) -> T:
        """What the server answers to `message`. Raises UnreachableError, RefusedError, ProtocolError."""
        return decode(answer, self.ask_raw(kind, encode(message), timeout_s))

    def ask_raw(self, kind: str, body: bytes, timeout_s: float) -> bytes:
        """As `ask`, on bytes."""
        action = flight.Action(kind, body)
        try:
            results = [result.body.to_pybytes() for result in self._client.do_action(action, self._call(timeout_s))]
        except (flight.FlightError, pa.ArrowInvalid) as error:
            raise meaning(error, self.address) from None
        if len(results) != 1:
            raise ProtocolError(f"{kind}: {len(results)} results from {self.address}, expected one")
        return bytes(results[0])

    def open(self, unit: UnitId, timeout_s: float) -> flight.FlightStreamReader:
        """The stream of `unit`. Reading it raises Flight's errors: put them through `meaning`."""
        try:
            return self._client.do_get(flight.Ticket(json.dumps(unit).encode()), self._call(timeout_s))
        except (flight.FlightError, pa.ArrowInvalid) as error:
            raise meaning(error, self.address) from None

    def close(self) -> None:
        """Let go of the connection; calls under way end by their deadlines."""
        self._client.close()

    def _call(self, timeout_s: float) -> flight.FlightCallOptions:
        return flight.FlightCallOptions(timeout=timeout_s, headers=self._headers, read_options=_ALIGNED)


def meaning(error: flight.FlightError | pa.ArrowInvalid, address: str) -> Exception:
    """The error of ours that a Flight error from `address` stands for."""
    if isinstance(error, pa.ArrowInvalid) and not isinstance(error, flight.FlightError):
        # Another thread of ours found the other side gone and closed the connection.
        return UnreachableError(f"{address}: {error}")
    if isinstance(error, flight.FlightUnauthenticatedError):
        return DeniedError(f"{address} does not know our token; both sides must use the same token file")
    if error.extra_info:
        return RefusedError(error.extra_info.decode(errors="replace"))
    return UnreachableError(f"{address}: {str(error).partition('. Detail')[0][:200]}")


def refusal(reason: str) -> flight.FlightServerError:
    """What a server raises to say no; the caller gets a RefusedError with exactly this reason."""
    return flight.FlightServerError(reason, reason.encode())


class TokenGate(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Lets only calls through that carry `token`."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._wanted = f"Bearer {token}".encode()

    def start_call(self, info: object, headers: dict[str, list[str]]) -> None:
        """Flight calls this first; FlightUnauthenticatedError ends the call."""
        said = headers.get(TOKEN_HEADER, [])
        if len(said) != 1 or not hmac.compare_digest(said[0].encode(), self._wanted):
            raise flight.FlightUnauthenticatedError("the fleet's token is missing or wrong")


def gate(host: str, port: int, token: str) -> dict[str, object]:
    """What to give a FlightServerBase so that it listens on `host` behind `token`; BindError if that is unsafe."""
    if not token and not is_loopback(host):
        raise BindError(f"{host} is open to other machines and there is no token: set one, or use 127.0.0.1")
    middleware = {"token": TokenGate(token)} if token else {}
    return {"location": f"grpc://{host}:{port}", "middleware": middleware}


def shut(server: flight.FlightServerBase, timeout_s: float) -> None:
    """End `server`. gRPC waits for its clients, some 20 s for a frozen one; after `timeout_s` that goes on aside."""
    ending = threading.Thread(target=server.shutdown, name="shutdown", daemon=True)
    ending.start()
    ending.join(timeout_s)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def write_registry(path: Path, address: str) -> None:
    """Publish where the coordinator listens (host:port), whole or not at all."""
    host, _, port = address.rpartition(":")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    aside.write_text(json.dumps({"host": host, "port": int(port)}))
    os.replace(aside, path)


def read_registry(path: Path) -> str:
    """The coordinator's address in the registry file at `path`; RegistryError says what is wrong with it."""
    try:
        said = json.loads(path.read_text())
        return f"{said['host']}:{int(said['port'])}"
    except OSError as error:
        raise RegistryError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"{path}: not a registry file ({error!r})") from None
