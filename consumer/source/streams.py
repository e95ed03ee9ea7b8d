"""Units from the workers that hold them: a connection to each, a deadline on every transfer, and a way to end one.

On one machine units come through a Unix socket, as memory that both sides have; from others by the plain port of their
worker, or by Flight where there is TLS or that port cannot be reached.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.flight as flight

from producer.api.channel import Access, Channel, DeniedError, RefusedError, UnreachableError, meaning
from producer.api.local import near, raw
from producer.api.parcel import BYTES, DENIED, MAPPED, REFUSED, CutError, Line, StaleError, unpacked
from producer.api.unit import Encoded, UnitId

_IDLE = 32  # connections kept for later
_SHUT_S = 60.0  # that a plain port which cannot be reached is not tried again


class Arrived(NamedTuple):
    """A whole unit; its samples lie in the batch's memory. `entry` of the producers' journal made it."""

    batch: pa.RecordBatch
    samples: list[Encoded]
    plan: str
    entry: int


class _Transfer(Protocol):
    def cancel(self) -> None: ...


class Streams:
    """Reads units; any thread may. `access` is asked for at each new connection."""

    def __init__(self, access: Callable[[], Access], call_s: float) -> None:
        self._access, self._call_s = access, call_s
        self._lock = threading.Lock()
        self._holders: dict[str, Channel] = {}
        self._lines: list[tuple[str, Line]] = []  # idle ones, the last used last
        self._shut: dict[str, float] = {}  # addresses whose plain port is not tried, until when
        self._reads: dict[_Transfer, float] = {}  # those begun, and when
        self._closed = False

    def read(self, address: str, unit: UnitId) -> pa.RecordBatch:
        """`unit` as the worker at `address` sends it, unchecked. Raises UnreachableError, RefusedError."""
        try:
            batch = self._by_line(address, unit)
            return self._by_flight(address, unit) if batch is None else batch
        except UnreachableError:
            with self._lock:
                gone = self._holders.pop(address, None)
                lines = [line for where, line in self._lines if where == address]
                self._lines = [kept for kept in self._lines if kept[0] != address]
            if gone is not None:
                gone.close()
            for line in lines:
                line.close()
            raise

    def cancel(self, older_than_s: float) -> None:
        """End the transfers that began longer ago."""
        with self._lock:
            stuck = [reader for reader, since in self._reads.items() if time.monotonic() - since > older_than_s]
        for reader in stuck:
            reader.cancel()

    def close(self) -> None:
        """End the connections."""
        with self._lock:
            self._closed = True
            holders, self._holders = self._holders, {}
            lines, self._lines = self._lines, []
        for channel in holders.values():
            channel.close()
        for _, line in lines:
            line.close()

    @contextmanager
    def _watched(self, transfer: _Transfer) -> Iterator[None]:
        with self._lock:
            self._reads[transfer] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                del self._reads[transfer]

    def _by_flight(self, address: str, unit: UnitId) -> pa.RecordBatch:
        reader = self._holder(address).open(unit, self._call_s)
        try:
            with self._watched(reader):
                return reader.read_chunk().data
        except StopIteration:
            raise UnreachableError(f"{address} sent nothing of {unit}") from None
        except flight.FlightError as error:
            raise meaning(error, address) from None
        except (pa.ArrowException, OSError) as error:
            raise UnreachableError(f"{address} sent what is no unit: {error}") from None

    def _by_line(self, address: str, unit: UnitId) -> pa.RecordBatch | None:
        """None where there is no plain way to `address`."""
        access = self._access()
        line = self._idle(address)
        while True:
            fresh = line is None
            if line is None and (line := self._connected(address, access)) is None:
                return None
            try:
                with self._watched(line):
                    kind, said = line.ask(access.token, unit, self._call_s)
            except StaleError as error:
                line.close()
                if fresh:
                    raise UnreachableError(f"{address}: {error}") from None
                line = self._idle(address)
                continue
            except CutError as error:
                line.close()
                raise UnreachableError(f"{address}: {error}") from None
            self._keep(address, line)
            return _meant(address, kind, said)

    def _connected(self, address: str, access: Access) -> Line | None:
        where: Path | tuple[str, int] | None = near(address)
        if where is None and access.tls is None:
            where = raw(address)
        with self._lock:
            if where is None or self._shut.get(address, 0.0) > time.monotonic():
                return None
        try:
            return Line(where)
        except CutError:
            with self._lock:
                self._shut = {known: until for known, until in self._shut.items() if until > time.monotonic()}
                self._shut[address] = time.monotonic() + _SHUT_S
            return None

    def _idle(self, address: str) -> Line | None:
        with self._lock:
            for index in reversed(range(len(self._lines))):
                if self._lines[index][0] == address:
                    return self._lines.pop(index)[1]
        return None

    def _keep(self, address: str, line: Line) -> None:
        with self._lock:
            self._lines.append((address, line))
            most = 0 if self._closed else _IDLE
            gone = self._lines[: max(0, len(self._lines) - most)]
            del self._lines[: len(gone)]
        for _, old in gone:
            old.close()

    def _holder(self, address: str) -> Channel:
        access = self._access()
        with self._lock:
            if address not in self._holders:
                self._holders[address] = Channel(address, access)
            return self._holders[address]


def _meant(address: str, kind: bytes, said: pa.Buffer | str) -> pa.RecordBatch:
    if isinstance(said, str):
        if kind == DENIED:
            raise DeniedError(f"{address} does not know our token; both sides must use the same token file")
        raise RefusedError(said) if kind == REFUSED else UnreachableError(f"{address}: {said}")
    assert kind in (BYTES, MAPPED), kind
    try:
        return unpacked(said)
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise UnreachableError(f"{address} sent what is no unit: {error}") from None
