"""How long a step takes: products at a share of the peak rate, memory and networks at theirs, less what hides.

A model of the ideal, with no stragglers and no wait for data. Rings: of n ranks each sends (n - 1) / n of the whole
tensor, an all-reduce twice that; a ring over nodes uses as many network cards of a node as it has ranks there.
"""

from dataclasses import dataclass

from launch.dry import Pass
from launch.memory import States
from launch.workload import Workload
from model.config import MMDiTConfig
from parallel.config import OptimConfig

# Bytes a gradient element moves when a unit's bf16 gradient is written and added to its fp32 buffer.
_ACCUMULATE = 12

# Bytes an element of a rank's share moves in an optimizer step: norm 4, clipping 8, Adam reads 16 and writes 12, the
# cast writes 2, the average reads 8 and writes 4.
_UPDATE = 54


@dataclass(frozen=True)
class Rates:
    """Of one GPU. The defaults are an H100 or H200 SXM in a machine of eight."""

    tflops: float = 989.0  # dense bf16, the data sheets' peak
    # Of that, while a block's forward and backward runs. Not measured by us yet: products alone reach 80 % (790 of 989
    # on an H200), attention 55 to 70 %, and what lies between them takes a tenth; the best published trainer of this
    # model reaches 25 % with everything in.
    efficiency: float = 0.6
    hbm_tbs: float = 3.35  # memory, TB/s: H100 SXM's data sheet; an H200 has 4.8
    intra_gbs: float = 370.0  # NVLink 4: 450 GB/s a direction, of which collectives reach about so much
    inter_gbs: float = 40.0  # a 400 Gb/s card a GPU, of which 80 % is reached: our choice
    node: int = 8  # GPUs a machine


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, and the bytes that each rank sends in it."""

    products: float
    memory: float  # accumulating gradients, the optimizer, the average
    tensor: float  # tensor-parallel collectives: none is hidden
    gradients: float  # what of the reduce-scatter outlasts the last unit's backward
    parameters: float  # what of the all-gather outlasts the first unit's forward
    sent: dict[str, float]

    @property
    def total(self) -> float:
        return self.products + self.memory + self.tensor + self.gradients + self.parameters


def step_time(
    sizes: MMDiTConfig, work: Workload, worst: Pass, states: States, optim: OptimConfig, tp: int, dp: int, rates: Rates
) -> StepTime:
    """A step of `work` on `tp` * `dp` ranks. `worst` is the pass of its costliest unit, which others scale from."""
    units = work.units / dp
    # Replicated parts and what is computed twice, as the dry pass counted them.
    share = worst.flops / work.worst.flops(sizes)
    products = work.flops(sizes) / dp * share / (rates.tflops * 1e12 * rates.efficiency)
    scale = work.tokens / work.units / work.worst.tokens
    tensor_bytes = {name: _on_wire(name, size, tp) * scale * units for name, size in worst.traffic.items()}
    tensor = sum(tensor_bytes.values()) / _rate(tp, 1, rates)
    gradient_bytes = 4.0 * states.trained * (dp - 1) / dp
    parameter_bytes = float(optim.dtype.itemsize) * states.trained * (dp - 1) / dp
    rate = _rate(dp, tp, rates)
    one = (products + tensor) / units
    buckets = max(1, states.trained // optim.bucket_elements)
    memory = (units * _ACCUMULATE * states.trained + _UPDATE * states.shard) / (rates.hbm_tbs * 1e12)
    return StepTime(
        products,
        memory,
        tensor,
        _exposed(gradient_bytes / rate, one * 2 / 3, buckets, overlapped=optim.overlap_grads),
        _exposed(parameter_bytes / rate, one / 3, buckets, overlapped=optim.overlap_params),
        {f"tensor-parallel {name}": size for name, size in tensor_bytes.items()}
        | {"gradient reduce-scatter": gradient_bytes, "parameter all-gather": parameter_bytes},
    )


def _on_wire(name: str, size: int, ranks: int) -> float:
    return size * (ranks - 1) / ranks * (2 if name == "all-reduce" else 1)


def _rate(ranks: int, stride: int, rates: Rates) -> float:
    """Bytes a second of a ring of `ranks`, neighbours in it `stride` GPUs apart."""
    intra, inter = rates.intra_gbs * 1e9, rates.inter_gbs * 1e9
    if ranks * stride <= rates.node:
        return intra
    return min(intra, inter * max(1, rates.node // stride))


def _exposed(seconds: float, behind: float, buckets: int, *, overlapped: bool) -> float:
    """What is left of `seconds` of communication behind so much compute; the last bucket never hides."""
    return max(seconds - behind, seconds / buckets) if overlapped else seconds
