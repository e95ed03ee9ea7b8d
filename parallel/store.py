"""The store through which the ranks of one start of a job find each other, apart from every earlier start's.

torchrun keeps one store through its restarts, and torch asks it under the same keys each time: a rank of the new start
may read where a dead peer listened, and then none of them gets through (pytorch issue 135712). Restart counts would
tell starts apart on one node alone, since each node counts its own.
"""

import os
import secrets
import time
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

_POLL_S = 0.005


def fresh(store: Store, rank: int, world: int, timeout: timedelta) -> Store:
    """A part of `store` for the `world` ranks that call this together, in which nobody else has written.

    Each rank draws a name. Rank 0 answers every name it finds with its own, which no earlier rank 0 could, until all
    have heard it. Raises DistStoreError (a RuntimeError) if they are not all here within `timeout`.
    """
    mine = secrets.token_hex(8)
    if rank:
        store.set(f"here/{rank}", mine)
        start = store.get(f"start/{mine}").decode()
        store.set(f"heard/{start}/{rank}", "")
        return PrefixStore(start, store)
    end = time.monotonic() + timeout.total_seconds()
    for other in range(1, world):
        while not store.check([f"heard/{mine}/{other}"]):
            if store.check([f"here/{other}"]):
                store.set(f"start/{store.get(f'here/{other}').decode()}", mine)
            if time.monotonic() > end:
                raise dist.DistStoreError(f"rank {other} has not come within {timeout}")
            time.sleep(_POLL_S)
    return PrefixStore(mine, store)


def torchrun_store(rank: int, world: int, timeout: timedelta) -> Store | None:
    """This start's part of the store that torchrun serves; None where it serves none and torch makes its own."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return fresh(TCPStore(address, port, is_master=False, timeout=timeout), rank, world, timeout)
