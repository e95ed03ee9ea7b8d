"""Notes that the ranks of a job leave each other in its store: they get through where collectives hang."""

import time
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore
from torch.distributed import DistStoreError
from torch.distributed.distributed_c10d import _get_default_store

from parallel.mesh import Mesh


class Board:
    """Opened by every rank alike, as often as it is opened: a later one of the same `name` is a new one."""

    def __init__(self, mesh: Mesh, name: str) -> None:
        self._mesh = mesh
        store = _get_default_store()
        turn = store.add(f"{name}/opened/{mesh.rank}", 1)
        self._store = PrefixStore(f"{name}/{turn}", store)

    def post(self, note: bytes) -> None:
        """Leave this rank's note."""
        self._store.set(f"note/{self._mesh.rank}", note)  # type: ignore[arg-type]  # bytes are taken too

    def read(self, rank: int, timeout_s: float) -> bytes | None:
        """The note of `rank`, waited for; None if it left none in time."""
        return self._wait(f"note/{rank}", timeout_s)

    def collect(self, timeout_s: float) -> list[bytes | None]:
        """Every rank's note, by rank; None for those that left none in `timeout_s` for all."""
        end = time.monotonic() + timeout_s
        return [self.read(rank, max(0.05, end - time.monotonic())) for rank in range(self._mesh.world)]

    def answer(self, said: bytes) -> None:
        """What follows from the notes, for everyone: from one rank, once."""
        self._store.set("answer", said)  # type: ignore[arg-type]

    def hear(self, timeout_s: float) -> bytes | None:
        """The answer, waited for; None if there is none in time."""
        return self._wait("answer", timeout_s)

    def _wait(self, key: str, timeout_s: float) -> bytes | None:
        try:
            self._store.wait([key], timedelta(seconds=timeout_s))
        except DistStoreError:
            return None
        return bytes(self._store.get(key))


class Call:
    """A number that any rank calls out to all, whatever they wait for; over a connection of its own."""

    def __init__(self, name: str) -> None:
        self._store = PrefixStore(name, _get_default_store().clone())  # type: ignore[attr-defined]

    def out(self, number: int) -> None:
        """Let every rank hear `number`, which is not 0."""
        self._store.set("number", str(number))

    def heard(self) -> int:
        """What was called out, 0 if nothing was. Raises RuntimeError once the store is gone."""
        return int(self._store.get("number")) if self._store.check(["number"]) else 0
