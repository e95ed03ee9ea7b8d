"""One pull for a whole model-parallel group: its first rank asks the producers, the others get the bytes from it."""

import json
import time
from typing import Protocol

import pyarrow as pa

from consumer.source.plans import InForce, Plans
from consumer.source.streams import Arrived
from parallel.mesh import Mesh
from producer.api.deal import deal
from producer.api.protocol import Welcome
from producer.api.unit import Encoded, UnitId, unpack

# The first byte of what a group's first rank shares, and all the bytes before a unit's own: its plan.
_UNIT, _ERROR = b"u", b"e"
_HEAD = 256


class PullError(ValueError):
    """A unit could not be had in time; the message says why."""


class Pull(Protocol):
    """What a group's first rank pulls through (source/flight.py)."""

    def take(self, unit: UnitId) -> Arrived:
        """A whole unit: one of the schedule, pulled ahead, or one of another stream, pulled now."""

    def ack(self, through: int) -> None:
        """Steps up to and including `through` are not needed again."""


class GroupSource:
    """Units of this rank's data-parallel share. `pull` is None on all but the first rank of the group."""

    def __init__(self, pull: Pull | None, welcome: Welcome, mesh: Mesh) -> None:
        self.pull, self.welcome, self.mesh = pull, welcome, mesh
        self._plans = Plans(0, welcome.plan, welcome.entry)

    def plan(self, step: int) -> InForce:
        """Which plan made the units of `step`, once one came; the same on all ranks."""
        return self._plans.at(step)

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
        samples, said = (None, None) if self.pull is None else self._pulled(self.pull, unit)
        shared = self.mesh.share(said)
        if shared[:1] != _UNIT:
            raise PullError(shared[1:].decode())
        waited = time.perf_counter() - start
        entry, plan = json.loads(shared[1:_HEAD])
        if samples is None:
            samples = unpack(_from_bytes(shared[_HEAD:]))[1]
        if unit.stream == "train":
            self._plans.learn(unit.step, plan, entry)
        return samples, waited

    def _pulled(self, pull: Pull, unit: UnitId) -> tuple[list[Encoded] | None, bytes]:
        # The group's other ranks wait for what this one got: an error reaches them too, and ends all alike.
        try:
            arrived = pull.take(unit)
        except (ValueError, OSError) as error:
            return None, _ERROR + f"{unit}: {error}".encode()
        head = json.dumps([arrived.entry, arrived.plan]).ljust(_HEAD - 1).encode()
        return arrived.samples, _UNIT + head + (_to_bytes(arrived.batch) if self.mesh.tp > 1 else b"")

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
