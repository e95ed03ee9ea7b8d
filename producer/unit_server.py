"""The units a worker holds, and the doors through which they leave: TCP, and a Unix socket for its own machine."""

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from producer.api.channel import Access, RefusedError, gate, local_gate, shut
from producer.api.local import both, new_socket
from producer.api.unit import UnitId
from producer.guard import GuardedServer, Traffic

log = logging.getLogger(__name__)

# A host's ranks hold some tens of transfers open; each has its thread and a few batches in gRPC's buffers.
TRAFFIC = Traffic(at_once=256, per_s=1000.0, burst=2000.0)


class Ring:
    """The units a worker holds, until it is told to forget them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._units: dict[UnitId, pa.RecordBatch] = {}
        self._bytes = 0
        self._served = {"served_units": 0.0, "served_bytes": 0.0}

    def put(self, unit: UnitId, batch: pa.RecordBatch) -> None:
        with self._lock:
            if unit not in self._units:
                self._units[unit] = batch
                self._bytes += batch.nbytes

    def get(self, unit: UnitId) -> pa.RecordBatch | None:
        with self._lock:
            return self._units.get(unit)

    def forget(self, unit: UnitId) -> None:
        with self._lock:
            batch = self._units.pop(unit, None)
            self._bytes -= batch.nbytes if batch is not None else 0

    def serve(self, unit: UnitId) -> pa.RecordBatch | None:
        """As `get`, for one who is sent it; counted."""
        batch = self.get(unit)
        if batch is not None:
            with self._lock:
                self._served["served_units"] += 1
                self._served["served_bytes"] += batch.nbytes
        return batch

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
        batch = self._ring.serve(unit)
        if batch is None:
            raise RefusedError(f"{unit} is not held here"[:200])
        return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(batch.schema, [batch]))


class Doors:
    """Open from construction to `shut`. `address` is what trainers are told, with `advertise` for the host if given.

    `local` opens the Unix socket as well.
    """

    def __init__(
        self, ring: Ring, *, host: str, port: int, access: Access | str, advertise: str = "", local: bool = False
    ) -> None:
        self._servers = [UnitServer(ring, gate(host, port, access))]
        self._socket = new_socket() if local else None
        if self._socket is not None:
            try:
                self._servers.append(UnitServer(ring, local_gate(self._socket, access)))
            except OSError as error:
                log.info("no Unix socket at %s: %s", self._socket, error)
                self._socket = None
        self.address = both(f"{advertise or host}:{self._servers[0].port}", self._socket)

    def shut(self, timeout_s: float) -> None:
        """As `channel.shut`, for all doors at once."""
        ending = [threading.Thread(target=shut, args=(server, timeout_s), daemon=True) for server in self._servers]
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join(timeout_s)
        _remove(self._socket)


def _remove(path: Path | None) -> None:
    if path is not None:
        path.unlink(missing_ok=True)
