"""Silent corruption: memory that changes though nobody wrote to it, found before an update spreads it.

Between two updates nothing may touch a rank's main weights, moments and average, so their checksum is taken after one
update and again before the next. The weights that the model computes with are copies that every data-parallel rank must
hold alike: each rank's checksum of them is taken once the forward has gathered them and again after the backward, and
the ranks compare. Gradients have no second copy, so at some steps each rank computes its own twice and compares before
they are reduced; that needs kernels which repeat to the bit.

Checksums are sums of 64-bit words, which no single flipped bit leaves alike. They stay on the device, and what they say
rides in the step's max all-reduce.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from consumer.config import AuditConfig
from consumer.ema import Ema
from parallel.engine import Engine

_WORD = 8  # bytes


class Audit:
    """`sealed` after an update, `gathered` after a step's first forward, `found` once its gradients are finished.

    Where `replays`, the gradients are computed twice from nothing: `computed` after each time, before they are reduced.
    """

    def __init__(self, config: AuditConfig, engine: Engine, ema: Ema) -> None:
        self.config, self.engine, self.ema = config, engine, ema
        self._state: Tensor | None = None
        self._weights: Tensor | None = None
        self._gradients: list[Tensor] = []

    def sealed(self, step: int) -> None:
        """Nobody writes to this rank's state until the update of `step`."""
        self._state = self._sum_of_state() if self._audits(step) else None

    def gathered(self, step: int) -> None:
        """The weights that the model computes with in `step` are in place."""
        self._weights = checksum(self.engine.replica()) if self._audits(step) else None

    def replays(self, step: int) -> bool:
        """Whether the gradients of `step` are computed twice."""
        return bool(self.config.replay_every) and step % self.config.replay_every == 0

    def computed(self) -> None:
        """The gradients of this rank's units have added up."""
        self._gradients.append(checksum(self.engine.gradients()))

    def found(self) -> Tensor:
        """What `said` tells of, 0 where all is well, 0-d on the device; it waits for nothing. Every rank calls it."""
        mesh = self.engine.mesh
        wrong = torch.zeros((), dtype=torch.bool, device=mesh.device)
        if self._state is not None:
            wrong |= self._sum_of_state() != self._state
        if self._weights is not None:
            wrong |= checksum(self.engine.replica()) != self._weights
            wrong |= self._alone(self._weights)
        code = wrong * float(mesh.world + mesh.rank + 1)  # the larger: it can be what made gradients differ
        if self._gradients:
            first, again = self._gradients
            code = torch.maximum(code, (first != again) * float(mesh.rank + 1))
            self._gradients = []
        return code

    def said(self, code: int, step: int) -> str:
        """For people, what the largest `found` of all ranks means."""
        rank, world = (code - 1) % self.engine.mesh.world, self.engine.mesh.world
        what = "memory changed by itself" if code > world else "the same gradients computed twice differ"
        return f"rank {rank}, step {step + 1}: {what}; nothing was saved, leave out its host and go on"

    def _audits(self, step: int) -> bool:
        return bool(self.config.every) and step % self.config.every == 0

    def _sum_of_state(self) -> Tensor:
        shards = list(self.engine.shards())
        return checksum([tensor for shard in shards for tensor in (*shard.tensors.values(), self.ema.of(shard))])

    def _alone(self, mine: Tensor) -> Tensor:
        """Whether this rank is outvoted by the data-parallel ranks; two that differ cannot say which is wrong."""
        mesh = self.engine.mesh
        if mesh.dp < 3:
            return torch.zeros((), dtype=torch.bool, device=mesh.device)
        every = [torch.zeros_like(mine) for _ in range(mesh.dp)]
        dist.all_gather(every, mine, group=mesh.dp_group)
        return mine != torch.stack(every).mode().values


def checksum(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of all words of flat `tensors`, modulo 2^64, 0-d int64 on their device."""
    sums = [_sum(tensor.detach()) * (2 * index + 1) for index, tensor in enumerate(tensors)]
    return torch.stack(sums).sum()


def _sum(tensor: Tensor) -> Tensor:
    """Of whole words, and of the elements before and after them one by one."""
    size = tensor.element_size()
    head = -(tensor.storage_offset() * size) % _WORD // size
    body = head + (tensor.numel() - head) // (_WORD // size) * (_WORD // size)
    if body <= head:
        return _elements(tensor)
    return _elements(tensor[:head]) + tensor[head:body].view(torch.int64).sum() + _elements(tensor[body:])


def _elements(tensor: Tensor) -> Tensor:
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.view(kind).sum(dtype=torch.int64)
