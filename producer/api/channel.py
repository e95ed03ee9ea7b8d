"""Flight as both sides use it: a token and a deadline on every call, TLS where asked for, errors with a meaning.

Serve with `listen`, call with `Channel`, find the coordinator with `read_registry`.
"""

import hashlib
import hmac
import ipaddress
import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.flight as flight
from pyarrow import ipc

from producer.api.local import far
from producer.api.protocol import TOKEN_HEADER, ProtocolError, decode, encode
from producer.api.tls import Tls, why
from producer.api.unit import UnitId

T = TypeVar("T")

# A message of the protocol is a few hundred bytes; one that lists what a worker holds, a few hundred kilobytes.
MESSAGE_LIMIT = 4 << 20

_OPTIONS = [
    # Clients of one process share connections, and with them the wait before the next try, unless told otherwise.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name how long one attempt may take, TLS and a busy server included.
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
]
# Bytes that were changed on their way make Arrow raise its own errors, or OSError.
_FAULTS = (flight.FlightError, pa.ArrowException, OSError)
_WHY_S = 1.5  # for a look at what keeps a connection from being made

# Arrow's own buffers start at odd addresses, which torch refuses; aligning them costs one copy.
_ALIGNED = ipc.IpcReadOptions(ensure_alignment=ipc.Alignment.At64Byte)


class UnreachableError(ConnectionError):
    """The other side did not answer within the deadline: it is starting, gone, stuck or cut off."""


class RefusedError(ValueError):
    """The other side answered no, and will again; the message is its reason."""


class DeniedError(RefusedError):
    """The other side does not know our token."""


class HandshakeError(RefusedError):
    """The two sides' TLS does not fit; the message says whose, and how to mend it."""


class RegistryError(ValueError):
    """The file that says where the coordinator is cannot be used."""


class BindError(ValueError):
    """A server would be open to more than it may be."""


@dataclass(frozen=True)
class Access:
    """What opens a server to its clients."""

    token: str = field(repr=False)  # the secret on every call
    tls: Tls | None = None
    plaintext: bool = False  # of a server: open to other machines without TLS, for closed networks alone

    @classmethod
    def of(cls, said: "Access | str") -> "Access":
        """Where only a token is given, that is all there is."""
        return said if isinstance(said, Access) else cls(said)


class Channel:
    """A connection to the Flight server at `address` (see local.py); calls may run at once, each with its deadline.

    TlsError if files of `access` cannot be used.
    """

    def __init__(self, address: str, access: Access | str) -> None:
        access = Access.of(access)
        self.address = far(address)
        self._tls = access.tls
        options = access.tls.client_options() if access.tls else {}
        where = f"grpc+{'tls' if access.tls else 'tcp'}://{self.address}"
        self._open: flight.FlightClient | None = flight.FlightClient(where, generic_options=_OPTIONS, **options)
        self._headers = [(TOKEN_HEADER.encode(), f"Bearer {access.token}".encode())]

    def ask(self, kind: str, message: object, answer: type[T], timeout_s: float) -> T:
        """What the server answers to `message`. Raises UnreachableError, RefusedError, ProtocolError."""
        return decode(answer, self.ask_raw(kind, encode(message), timeout_s))

    def ask_raw(self, kind: str, body: bytes, timeout_s: float) -> bytes:
        """As `ask`, on bytes."""
        if len(body) > MESSAGE_LIMIT:
            raise RefusedError(f"{kind}: a message of {len(body)} bytes; at most {MESSAGE_LIMIT} are taken")
        action = flight.Action(kind, body)
        try:
            results = [result.body.to_pybytes() for result in self._client.do_action(action, self._call(timeout_s))]
        except _FAULTS as error:
            raise self._meaning(error) from None
        if len(results) != 1:
            raise ProtocolError(f"{kind}: {len(results)} results from {self.address}, expected one")
        return bytes(results[0])

    def open(self, unit: UnitId, timeout_s: float) -> flight.FlightStreamReader:
        """The stream of `unit`. Reading it raises Flight's errors: put them through `meaning`."""
        try:
            return self._client.do_get(flight.Ticket(json.dumps(unit).encode()), self._call(timeout_s))
        except _FAULTS as error:
            raise self._meaning(error) from None

    def close(self) -> None:
        """Let go of the connection; calls under way go on to their deadlines, others are refused."""
        # Flight's own close frees what a call of another thread is using, which ends the process. The last of these
        # calls that holds the client closes it.
        self._open = None

    @property
    def _client(self) -> flight.FlightClient:
        client = self._open
        if client is None:
            raise UnreachableError("this connection was closed")  # caught by callers as what cuts a call off
        return client

    def _call(self, timeout_s: float) -> flight.FlightCallOptions:
        return flight.FlightCallOptions(timeout=timeout_s, headers=self._headers, read_options=_ALIGNED)

    def _meaning(self, error: Exception) -> Exception:
        # With no connection it may be TLS, of which gRPC says little.
        if isinstance(error, flight.FlightUnavailableError) and not error.extra_info:
            said = why(self.address, self._tls, _WHY_S)
            if said:
                return HandshakeError(f"{self.address}: {said}")
        return meaning(error, self.address)


def meaning(error: Exception, address: str) -> Exception:
    """The error of ours that a Flight or Arrow error from `address` stands for."""
    if isinstance(error, flight.FlightUnauthenticatedError):
        return DeniedError(f"{address} does not know our token; both sides must use the same token file")
    if isinstance(error, flight.FlightError) and error.extra_info:
        return RefusedError(error.extra_info.decode(errors="replace"))
    # One of Arrow's own among them: another thread of ours found the other side gone and closed the connection.
    return UnreachableError(f"{address}: {str(error).partition('. Detail')[0][:200]}")


def refusal(reason: str) -> flight.FlightServerError:
    """What a server raises to say no; the caller gets a RefusedError with exactly this reason."""
    return flight.FlightServerError(reason, reason.encode())


class TokenGate(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Lets only calls through that carry `token`."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._wanted = _digest(f"Bearer {token}")

    def start_call(self, info: object, headers: dict[str, list[str | bytes]]) -> None:
        """Flight calls this first; FlightUnauthenticatedError ends the call."""
        said = headers.get(TOKEN_HEADER, [])
        # Of hashes, so that the time says nothing of the length either.
        if len(said) != 1 or not hmac.compare_digest(_digest(said[0]), self._wanted):
            raise flight.FlightUnauthenticatedError("the fleet's token is missing or wrong")


def _digest(said: str | bytes) -> bytes:
    return hashlib.sha256(said if isinstance(said, bytes) else said.encode(errors="surrogateescape")).digest()


def gate(host: str, port: int, access: Access | str) -> dict[str, Any]:
    """What to give a FlightServerBase so that it listens on `host` behind `access`.

    BindError if that is unsafe, TlsError if the files cannot be used.
    """
    access = Access.of(access)
    check_bind(host, access)
    options = access.tls.server_options() if access.tls else {}
    return {
        "location": f"grpc+{'tls' if access.tls else 'tcp'}://{host}:{port}",
        "middleware": {"token": TokenGate(access.token)} if access.token else {},
        **options,
    }


def check_bind(host: str, access: Access) -> None:
    """BindError if other machines could come in without a token, or read and change what goes by."""
    if is_loopback(host):
        return
    if not access.token:
        raise BindError(
            f"fleet.host: {host} is open to other machines and there is no token: set one, or use 127.0.0.1"
        )
    if access.tls is None and not access.plaintext:
        raise BindError(
            f"fleet.host: {host} is open to other machines, and without TLS whoever sees the traffic has the token: "
            "set fleet.tls and pull.tls (docs/security.md has the commands), or use 127.0.0.1; in a network where "
            "nobody else is, fleet.plaintext = true goes without"
        )


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
