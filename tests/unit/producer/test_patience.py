"""Rows with a deadline, and that nobody waits for them once it is over."""

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from producer.patience import StallError, within


def test_a_run_in_which_nothing_ends_is_ended_with_what_to_do() -> None:
    def stuck() -> Iterator[dict[str, object]]:
        yield {"shard": "a"}
        for _ in range(500):
            time.sleep(0.01)

    came = within(stuck(), 0.2, "curate.stall_s")
    assert next(came) == {"shard": "a"}
    with pytest.raises(StallError, match=r"curate\.stall_s: no shard was finished for 0\.2 s"):
        next(came)


def test_a_shard_that_takes_long_is_waited_for_while_its_batches_end() -> None:
    looked, done = itertools.count(), threading.Event()

    def slow() -> Iterator[dict[str, object]]:
        assert done.wait(60)
        yield {"shard": "a"}

    def sign() -> int:
        number = next(looked)
        if number == 4:
            done.set()
        return number

    assert list(within(slow(), 0.02, "curate.stall_s", sign)) == [{"shard": "a"}]
    assert next(looked) > 4


def test_an_error_inside_a_task_is_not_swallowed() -> None:
    def broken() -> Iterator[dict[str, object]]:
        yield {"shard": "a"}
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(within(broken(), 5, "curate.stall_s"))


def test_left_early_whatever_the_reason_the_thread_that_waits_is_gone() -> None:
    """With Ray below, one that is left would start another Ray."""
    before = threading.active_count()

    def endless() -> Iterator[dict[str, object]]:
        yield {"shard": "a"}
        while True:
            time.sleep(0.01)

    came = within(endless(), 60, "curate.stall_s")
    assert next(came) == {"shard": "a"} and threading.active_count() == before + 1
    came.close()
    assert threading.active_count() == before
