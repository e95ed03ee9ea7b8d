"""One pull for a whole model-parallel group: its first rank asks the producers, the others get the bytes from it."""

import time
from typing import Protocol

import pyarrow as pa

from parallel.mesh import Mesh
from producer.api.deal import deal
from producer.api.protocol import Welcome
from producer.api.unit import Encoded, UnitId, unpack

# The first byte of what a group's first rank shares.
_UNIT, _ERROR = b"u", b"e"


class PullError(ValueError):
    """A unit could not be had in time; the message says why."""


class Pull(Protocol):
    """What a group's first rank pulls through (source/flight.py)."""

    def next_unit(self, unit: UnitId) -> pa.RecordBatch:
        """A unit of the schedule, pulled ahead."""

    def fetch(self, unit: UnitId) -> pa.RecordBatch:
        """A unit outside the schedule, pulled now."""

    def ack(self, through: int) -> None:
        """Steps up to and including `through` are not needed again."""


class GroupSource:
    """Units of this rank's data-parallel share. `pull` is None on all but the first rank of the group."""

    def __init__(self, pull: Pull | None, welcome: Welcome, mesh: Mesh) -> None:
        self.pull, self.welcome, self.mesh = pull, welcome, mesh

    def step(self, step: int) -> list[UnitId]:
        """The units of `step` that this rank's group trains on."""
        return [UnitId("train", step, unit) for unit in deal(self.welcome.units, self.mesh.dp, self.mesh.dp_rank)]

    def validation(self) -> list[UnitId]:
        """This group's share of the validation units; shares may differ in size by one."""
        return [
            UnitId("validation", 0, u) for u in range(self.mesh.dp_rank, self.welcome.validation_units, self.mesh.dp)
        ]

    def unit(self, unit: UnitId) -> tuple[list[Encoded], float]:
        """The samples of `unit` on every rank of the group, checked, and the seconds waited for them."""
        start = time.perf_counter()
        shared = self.mesh.share(None if self.pull is None else self._pulled(self.pull, unit))
        if shared[:1] != _UNIT:
            raise PullError(shared[1:].decode())
        waited = time.perf_counter() - start
        return unpack(_from_bytes(shared[1:]))[1], waited

    def _pulled(self, pull: Pull, unit: UnitId) -> bytes:
        # The group's other ranks wait for what this one got: an error reaches them too, and ends all alike.
        get = pull.next_unit if unit.stream == "train" else pull.fetch
        try:
            return _UNIT + _to_bytes(get(unit))
        except (ValueError, OSError) as error:
            return _ERROR + f"{unit}: {error}".encode()

    def ack(self, through: int) -> None:
        """Training has passed `through` for good: it is in a checkpoint."""
        if self.pull is not None:
            self.pull.ack(through)


def _to_bytes(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _from_bytes(raw: bytes) -> pa.RecordBatch:
    with pa.ipc.open_stream(raw) as reader:
        return reader.read_next_batch()
