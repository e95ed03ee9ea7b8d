"""A collective that one rank leaves out, as the hang watchdog sees it."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from consumer.endings import Cause, read_status
from consumer.watchdog import Watchdog, WatchdogConfig
from tests.distributed.ranks import Ranks, RanksError


def leave_one_out(out: str) -> None:
    """Rank 1 skips the fourth all-reduce, and waits for an answer that its peer never sends."""
    watchdog = Watchdog(WatchdogConfig(hang_s=1.0, start_s=60.0, grace_s=0.5), Path(out))
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    number = torch.zeros(1)

    def reduces() -> None:
        dist.all_reduce(number)

    def receives() -> None:
        dist.recv(number, 0, tag=7)

    for step in range(3):
        watchdog.beat("reduce", step)
        reduces()
    watchdog.beat("reduce", 3)
    reduces() if dist.get_rank() == 0 else receives()


def test_a_skipped_collective_is_found_with_the_stacks_of_both_sides(ranks: Ranks, tmp_path: Path) -> None:
    with pytest.raises(RanksError) as caught:
        ranks.run(2, leave_one_out, out=tmp_path)
    # Whoever is ended last may see its peer gone first.
    assert all(caught.value.codes) and min(caught.value.codes) < 0, caught.value
    status = read_status(tmp_path)
    assert status is not None and (status.cause, status.step) == (Cause.HANG, 3)
    (path,) = tmp_path.glob("stacks-*.txt")
    stacks = path.read_text()
    assert "in reduces" in stacks and "in receives" in stacks
