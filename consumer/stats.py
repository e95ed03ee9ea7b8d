"""What a step did, summed over the data-parallel ranks, without waiting for the device.

While a step runs, numbers stay where they are: tensors on the device, counts on the host. `reduced` sends the counts
to the device and sums everything in one all-reduce; nothing here reads a device tensor back. The loop does, once a
step, together with all else that it must know, and hands the numbers to `read`.
"""

import resource
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from consumer.metrics import Part
from consumer.objective.flow import Batch
from parallel.mesh import Mesh

# Equal bins of sigma in [0, 1] that losses are told apart by.
LEVELS = 10
_NAMES = tuple(f"{k / LEVELS:.1f}-{(k + 1) / LEVELS:.1f}" for k in range(LEVELS))


@dataclass(frozen=True)
class Totals:
    """A step over all ranks."""

    loss: float  # summed over samples, each in fp32 as trained on
    samples: int
    tokens: int
    flops: float
    executed: float
    loss_by_level: dict[str, Part]  # by bins of sigma: "0.0-0.1" ... "0.9-1.0"; those without samples are left out
    loss_by_bucket: dict[str, Part]  # by HEIGHTxWIDTH

    @property
    def mean(self) -> float:
        """The loss a sample; 0 of a step that had none."""
        return self.loss / max(self.samples, 1)


class Stats:
    """One step's numbers on this rank. `buckets` are the sizes (height, width) told apart, the same on all ranks."""

    def __init__(self, mesh: Mesh, buckets: Iterable[tuple[int, int]]) -> None:
        self.mesh = mesh
        self._row = {size: row for row, size in enumerate(sorted(set(buckets)))}
        self._levels = torch.arange(LEVELS, dtype=torch.float64, device=mesh.device)[:, None]
        self._rows = torch.arange(len(self._row), dtype=torch.float64, device=mesh.device)[:, None]
        self.start()

    def start(self) -> None:
        """Begin a step."""
        self._losses: list[Tensor] = []
        self._sigmas: list[Tensor] = []
        self._sizes: list[tuple[int, int]] = []
        self._tokens, self._flops, self._executed = 0, 0.0, 0.0

    def add(self, batch: Batch, each: Tensor, flops: float, executed: float = 0.0) -> None:
        """Take in a unit: its samples' losses `each` [b], its model FLOPs and those executed; no operator runs."""
        if batch.keys:
            self._losses.append(each)
            self._sigmas.append(batch.sigma)
            self._sizes.extend(batch.sizes)
            self._tokens += batch.tokens
            self._flops, self._executed = self._flops + flops, self._executed + executed

    def reduced(self) -> Tensor:
        """The step's numbers for `read`, fp64 on the device, summed over the data-parallel ranks."""
        rows = [self._row.get(size, -1) for size in self._sizes]
        counts = [
            len(rows),
            self._tokens,
            self._flops,
            self._executed,
            *(rows.count(row) for row in range(len(self._row))),
        ]
        told = self.mesh.sent([*counts, *rows])
        losses = torch.cat([told[:0], *(each.double() for each in self._losses)])
        sigmas = torch.cat([told[:0], *(sigma.double() for sigma in self._sigmas)])
        # A row of all samples for each level and bucket: sums by index would add in no certain order on CUDA.
        at_level = (sigmas * LEVELS).floor().clamp(0, LEVELS - 1) == self._levels
        in_bucket = told[len(counts) :] == self._rows
        vector = [
            losses.sum()[None],
            told[: len(counts)],
            torch.where(in_bucket, losses, 0.0).sum(1),
            at_level.sum(1).double(),
            torch.where(at_level, losses, 0.0).sum(1),
        ]
        return self.mesh.sum(torch.cat(vector))

    @property
    def width(self) -> int:
        """How many numbers `reduced` gives."""
        return 5 + 2 * len(self._row) + 2 * LEVELS

    def read(self, numbers: Sequence[float]) -> Totals:
        """What `reduced` said, once the caller has read it back: the first `width` of `numbers`."""
        left = iter(numbers)
        loss, samples, tokens, flops, executed = islice(left, 5)
        names = [f"{height}x{width}" for height, width in self._row]
        in_buckets, bucket_losses = list(islice(left, len(names))), list(islice(left, len(names)))
        at_levels, level_losses = list(islice(left, LEVELS)), list(islice(left, LEVELS))
        return Totals(
            loss,
            round(samples),
            round(tokens),
            flops,
            executed,
            _parts(_NAMES, level_losses, at_levels),
            _parts(names, bucket_losses, in_buckets),
        )


def _parts(names: Sequence[str], losses: list[float], counts: list[float]) -> dict[str, Part]:
    found = zip(names, losses, counts, strict=True)
    return {name: Part(loss / count, round(count)) for name, loss, count in found if count}


def peak_memory(device: torch.device) -> int:
    """The most bytes this rank has had allocated on the device so far; on the CPU, the process's largest size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
