"""The units a worker holds, and the doors through which they leave: Flight, a plain port, and a Unix socket.

The plain port and the socket (producer/parcels.py) take less than half of Flight's work. Under TLS there is no plain
port.
"""

import hmac
import json
import logging
import resource
import secrets
import socket
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from producer.api.channel import Access, RefusedError, gate, shut
from producer.api.local import new_socket, together
from producer.api.parcel import AWAY, BYTES, DENIED, REFUSED
from producer.api.unit import UnitId
from producer.guard import GuardedServer, Traffic, Turnstile
from producer.parcels import Packed, ParcelServer, packed

log = logging.getLogger(__name__)

# A host's ranks hold some tens of transfers open; each has its thread and a few batches in gRPC's buffers.
TRAFFIC = Traffic(at_once=256, per_s=1000.0, burst=2000.0)
# Connections to a plain door, most of them idle; each has its thread.
_LINES = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


class Ring:
    """The units a worker holds, until it is told to forget them.

    With `near`, trainers of this machine may come: then units lie in files that those map. After a trainer from
    elsewhere the next units do not, since sending from such a file costs more.
    """

    def __init__(self, near: bool = False) -> None:
        self._lock = threading.Lock()
        self._near = near
        self._units: dict[UnitId, Packed] = {}
        self._bytes = 0
        self._served = {"served_units": 0.0, "served_bytes": 0.0}

    def put(self, unit: UnitId, batch: pa.RecordBatch) -> None:
        made = packed(batch, mapped=self._near)
        with self._lock:
            if unit not in self._units:
                self._units[unit] = made
                self._bytes += made.batch.nbytes

    def get(self, unit: UnitId) -> pa.RecordBatch | None:
        with self._lock:
            held = self._units.get(unit)
        return held and held.batch

    def forget(self, unit: UnitId) -> None:
        with self._lock:
            held = self._units.pop(unit, None)
            self._bytes -= held.batch.nbytes if held is not None else 0

    def serve(self, unit: UnitId, *, near: bool = False) -> Packed | None:
        """A unit for one who is sent it; counted."""
        with self._lock:
            held = self._units.get(unit)
            if held is not None:
                self._near = near
                self._served["served_units"] += 1
                self._served["served_bytes"] += held.batch.nbytes
        return held

    def numbers(self) -> dict[str, float]:
        """What is held now, and what was sent since the start."""
        with self._lock:
            return {"ring_units": float(len(self._units)), "ring_bytes": float(self._bytes), **self._served}

    def list(self) -> tuple[tuple[UnitId, ...], int]:
        """The units and their bytes in all."""
        with self._lock:
            return tuple(self._units), self._bytes


class UnitServer(GuardedServer):
    """Serves the units of a ring: `do_get` of a unit's id as JSON gives one record batch."""

    def __init__(self, ring: Ring, options: dict[str, Any], traffic: Traffic = TRAFFIC) -> None:
        self._ring = ring
        super().__init__(options, traffic)

    def stream(self, ticket: bytes) -> flight.RecordBatchStream:
        """One unit; a unit that is not here is refused."""
        try:
            stream, step, number = json.loads(ticket)
            unit = UnitId(str(stream), int(step), int(number))
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise RefusedError("the ticket is no unit: write it as [stream, step, unit]") from None
        held = self._ring.serve(unit)
        if held is None:
            raise RefusedError(_not_here(unit))
        return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(held.batch.schema, [held.batch]))


class UnitDoor:
    """Serves the units of a ring at `listener`, to whom knows `token`, at a bounded rate."""

    def __init__(self, ring: Ring, listener: socket.socket, token: str, traffic: Traffic = TRAFFIC) -> None:
        self._ring, self._token = ring, token.encode()
        self._near = listener.family == socket.AF_UNIX
        self.turnstile = Turnstile(traffic)
        self._server = ParcelServer(listener, self._answer, _LINES)

    def shut(self) -> None:
        self._server.shut()

    def _answer(self, token: str, unit: UnitId, who: str) -> tuple[bytes, Packed | str]:
        if self._token and not hmac.compare_digest(token.encode(errors="surrogateescape"), self._token):
            return DENIED, "the fleet's token is missing or wrong"
        try:
            with self.turnstile.passing(who):
                held = self._ring.serve(unit, near=self._near)
                return (REFUSED, _not_here(unit)) if held is None else (BYTES, held)
        except flight.FlightUnavailableError as error:
            return AWAY, str(error)
        except Exception:
            number = secrets.token_hex(4)
            log.exception("%s not sent, error %s", unit, number)
            return AWAY, f"internal error {number}; see the server's log"


class Doors:
    """Open from construction to `shut`. `address` is what trainers are told, with `advertise` for the host if given.

    `local` opens the Unix socket as well; `raw` is the plain port, 0 for any.
    """

    def __init__(
        self,
        ring: Ring,
        *,
        host: str,
        port: int,
        access: Access | str,
        advertise: str = "",
        local: bool = False,
        raw: int = 0,
    ) -> None:
        access = Access.of(access)
        self._server = UnitServer(ring, gate(host, port, access))
        self._doors: list[UnitDoor] = []
        number = self._open_plain(ring, host, raw, access)
        self._socket = self._open_socket(ring, access) if local else None
        self.address = together(f"{advertise or host}:{self._server.port}", number, self._socket)

    def _open_plain(self, ring: Ring, host: str, port: int, access: Access) -> int | None:
        """The port; None under TLS, which it has not, or where none is to be had."""
        if access.tls is not None:
            return None
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host.strip("[]"), port), family=family, backlog=128)
        except OSError as error:
            log.info("no plain port at %s: %s", host, error)
            return None
        self._doors.append(UnitDoor(ring, listener, access.token))
        return int(listener.getsockname()[1])

    def _open_socket(self, ring: Ring, access: Access) -> Path | None:
        path = new_socket()
        if path is None:
            return None
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(path))
            listener.listen(128)
        except OSError as error:
            log.info("no Unix socket at %s: %s", path, error)
            listener.close()
            return None
        self._doors.append(UnitDoor(ring, listener, access.token))
        return path

    def shut(self, timeout_s: float) -> None:
        """As `channel.shut`, for all doors at once."""
        ending = [threading.Thread(target=door.shut, daemon=True) for door in self._doors]
        ending.append(threading.Thread(target=shut, args=(self._server, timeout_s), daemon=True))
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join(timeout_s)
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)


def _not_here(unit: UnitId) -> str:
    return f"{unit} is not held here"[:200]
