"""What a rank's device holds, by part: states from the shapes of its parameters, the rest from a dry pass.

The states are those of parallel/engine.py: weights in one buffer, fp32 gradients in another of the same length; and
shared out over the data-parallel ranks fp32 main weights (beside bf16 ones), two moments and the average
(consumer/ema.py).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from launch.dry import GATHERED, MODULATION, Form, Pass, Shapes
from launch.ledger import OTHER
from parallel.config import OptimConfig

# Megatron's alignment of a parameter and of a bucket, in elements (param_and_grad_buffer.py).
_PARAMETER, _BUCKET = 64, 128

# Of activations, on CUDA: what the caching allocator holds and cannot use while units change their shapes. Our choice,
# to be measured; torch's expandable segments keep it low.
_FRAGMENTATION = 0.04

GIB = 2**30


@dataclass(frozen=True)
class States:
    """Bytes of what lives through the whole run on one rank, and elements to count by."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    trained: int  # elements of this rank's slices that train, padding included
    shard: int  # of them, those whose optimizer state it holds
    host: int  # bytes of the host's copies that an asynchronous save writes from (weights, moments, average in fp32)

    @classmethod
    def of(cls, shapes: Shapes, optim: OptimConfig, dp: int) -> "States":
        """The states of a rank whose parameters are `shapes`, `dp` ranks sharing the optimizer."""
        sizes = [math.prod(shape) for shape, trained in shapes.values() if trained]
        frozen = sum(math.prod(shape) for shape, trained in shapes.values() if not trained)
        elements = buffer_elements(sizes, dp, optim.bucket_elements if optim.overlap_grads else None)
        width, shard = optim.dtype.itemsize, elements // dp
        return cls(
            weights=(elements + frozen) * width,
            gradients=elements * 4,
            optimizer=shard * (12 if width < 4 else 8),
            average=(shard + frozen) * 4,
            trained=elements,
            shard=shard,
            host=shard * 16 + frozen * 8 // dp,
        )

    @property
    def device(self) -> int:
        """All bytes on the device."""
        return self.weights + self.gradients + self.optimizer + self.average


def buffer_elements(sizes: Iterable[int], dp: int, bucket: int | None) -> int:
    """Elements of Megatron's buffer for parameters of `sizes` in their order: filled from the end, padded to share.

    `bucket` is the least size of a bucket that is reduced by itself; None: all are one.
    """
    divisor, end, start = math.lcm(dp, _BUCKET), 0, 0
    for size in reversed(list(sizes)):
        end = -(-end // _PARAMETER) * _PARAMETER + size
        if bucket is not None and end - start >= bucket:
            start = end = -(-end // divisor) * divisor
    return -(-end // divisor) * divisor


@dataclass(frozen=True)
class Memory:
    """Bytes by part at the moment of the most, on one rank."""

    parts: dict[str, int]
    host: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @classmethod
    def of(cls, states: States, step: Pass, form: Form, reserve: int) -> "Memory":
        """Of a rank with `states` in whose costliest unit `step` is alive; `reserve` is what CUDA and NCCL take."""
        kept = dict(step.kept)
        parts = {
            "weights": states.weights,
            "gradients": states.gradients,
            "optimizer": states.optimizer,
            "EMA": states.average,
            "activations": kept[OTHER],
            "gathered modulation": kept.get(MODULATION, 0),
            "gathered tokens": kept.get(GATHERED, 0),
            "backward's working set": step.peak - sum(kept.values()),
        }
        if form == "cuda":
            # torch's own Adam holds the roots of all second moments for a moment; Transformer Engine's holds nothing.
            parts["optimizer's working set"] = max(0, 4 * states.shard - step.peak)
            parts["fragmentation"] = int(_FRAGMENTATION * step.peak)
            parts["CUDA, cuBLAS, NCCL"] = reserve
        return cls(parts, states.host)
