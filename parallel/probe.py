"""Whether the ranks of each group reach one another: one number summed in each, with a short deadline of its own."""

import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from parallel.mesh import Mesh

_POLL_S = 0.001


@dataclass(frozen=True)
class Reach:
    """What one all-reduce in a group showed. `clock` is this rank's wall clock when it was through, else 0."""

    group: str  # tp, dp, bytes or world
    ranks: tuple[int, ...]
    seconds: float
    error: str  # empty if all is well
    clock: float


def probe(mesh: Mesh, timeout_s: float) -> list[Reach]:
    """Try every group of this rank, one after the other; every rank calls it.

    A group has `timeout_s` longer than the one before it: a rank that was held up there still comes in time, so that
    only groups that are at fault themselves fail.
    """
    world = dist.group.WORLD
    assert world is not None
    cpu = torch.device("cpu")
    groups = [
        ("tp", mesh.tp_group, mesh.device),
        ("dp", mesh.dp_group, mesh.device),
        ("bytes", mesh.byte_group, cpu),
        ("world", world, mesh.device),
    ]
    start = time.monotonic()
    return [
        _probe(name, group, device, start + number * timeout_s)
        for number, (name, group, device) in enumerate(groups, start=1)
    ]


def _probe(name: str, group: dist.ProcessGroup, device: torch.device, end: float) -> Reach:
    ranks, start = tuple(dist.get_process_group_ranks(group)), time.monotonic()
    error = _sum_of_ones(group, device, len(ranks), end)
    return Reach(name, ranks, time.monotonic() - start, error, 0.0 if error else time.time())


def _sum_of_ones(group: dist.ProcessGroup, device: torch.device, ranks: int, end: float) -> str:
    """What is wrong with the sum over the group, or nothing."""
    options = dist.AllreduceOptions()
    # gloo gives up by itself; NCCL leaves it to whoever looks.
    options.timeout = timedelta(seconds=end - time.monotonic())
    ones = torch.ones(1, device=device)
    try:
        work = group.allreduce([ones], options)
        while not work.is_completed():
            if time.monotonic() > end:
                return "no answer in time"
            time.sleep(_POLL_S)
        work.wait()
        total = ones.item()
    except RuntimeError as error:
        return str(error).splitlines()[0][:160]
    return "" if total == ranks else f"ones add up to {total:g}"
