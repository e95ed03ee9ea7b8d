"""Units from the workers that hold them: a connection to each, a deadline on every transfer, and a way to end one."""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.flight as flight

from producer.api.channel import Access, Channel, UnreachableError, meaning
from producer.api.unit import Encoded, UnitId


class Arrived(NamedTuple):
    """A whole unit; its samples lie in the batch's memory. `entry` of the producers' journal made it."""

    batch: pa.RecordBatch
    samples: list[Encoded]
    plan: str
    entry: int


class Streams:
    """Reads units; any thread may. `access` is asked for at each new connection."""

    def __init__(self, access: Callable[[], Access], call_s: float) -> None:
        self._access, self._call_s = access, call_s
        self._lock = threading.Lock()
        self._holders: dict[str, Channel] = {}
        self._reads: dict[flight.FlightStreamReader, float] = {}  # those begun, and when

    def read(self, address: str, unit: UnitId) -> pa.RecordBatch:
        """`unit` as the worker at `address` sends it, unchecked. Raises UnreachableError, RefusedError."""
        try:
            reader = self._holder(address).open(unit, self._call_s)
            with self._lock:
                self._reads[reader] = time.monotonic()
            try:
                return reader.read_chunk().data
            except StopIteration:
                raise UnreachableError(f"{address} sent nothing of {unit}") from None
            except flight.FlightError as error:
                raise meaning(error, address) from None
            except (pa.ArrowException, OSError) as error:
                raise UnreachableError(f"{address} sent what is no unit: {error}") from None
            finally:
                with self._lock:
                    del self._reads[reader]
        except UnreachableError:
            with self._lock:
                gone = self._holders.pop(address, None)
            if gone:
                gone.close()
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
            holders, self._holders = self._holders, {}
        for channel in holders.values():
            channel.close()

    def _holder(self, address: str) -> Channel:
        access = self._access()
        with self._lock:
            if address not in self._holders:
                self._holders[address] = Channel(address, access)
            return self._holders[address]
