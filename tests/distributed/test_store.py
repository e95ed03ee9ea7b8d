"""Ranks of one start find each other in a store that an earlier start has written in."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from parallel.store import fresh


def server(timeout_s: float = 20.0) -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)


def join(port: int, world: int, ranks: range, timeout_s: float = 20.0) -> dict[int, dist.Store]:
    """The stores that `ranks` of `world` get, each over a connection of its own, or what stopped them."""
    got: dict[int, dist.Store] = {}

    def one(rank: int) -> None:
        timeout = timedelta(seconds=timeout_s)
        client = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)
        got[rank] = fresh(client, rank, world, timeout)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s + 5)
    return got


def test_every_start_has_its_own_part_of_the_store() -> None:
    store = server()
    for start in range(3):
        stores = join(store.port, 4, range(4))
        assert sorted(stores) == [0, 1, 2, 3]
        for rank in range(4):
            assert not stores[rank].check(["address/0"]), f"start {start} reads what an earlier one wrote"
        stores[0].set("address/0", f"of start {start}")
        assert {stores[rank].get("address/0") for rank in range(4)} == {f"of start {start}".encode()}


def test_ranks_that_died_while_joining_do_not_mislead_the_next_start() -> None:
    store = server()
    for rank in (1, 2, 3):
        store.set(f"here/{rank}", f"the dead rank {rank}")
    stores = join(store.port, 4, range(4))
    stores[3].set("key", "value")
    assert stores[0].get("key") == b"value"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_rank_that_does_not_come_ends_the_wait_of_the_others() -> None:
    store = server()
    assert join(store.port, 3, range(2), timeout_s=0.5).keys() <= {1}
