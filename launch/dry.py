"""A training step of the real model and objective on tensors without memory, as one rank of a mesh that is not there.

Two forms. "cpu": fake CPU tensors take the very code that a CPU runs. "cuda": meta tensors take the code of a CUDA
device; where that compiles (model/fused.py), stand-ins keep for the backward what torch.compile keeps (a test compares
them), and attention is torch's varlen kernel. What is not seen there are kernels' own workspaces.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.varlen import varlen_attn
from torch.testing._internal.distributed.fake_pg import FakeStore

from consumer.objective.flow import Batch, FlowObjective
from launch.ledger import OTHER, Ledger
from model import fused
from model.config import FlowConfig, MMDiTConfig
from model.layout import Layout
from model.mmdit import MMDiT
from parallel import cpu_stand_in
from parallel.mesh import Mesh
from parallel.meta import allocate
from parallel.provider import MegatronProvider

Form = Literal["cpu", "cuda"]
Sample = tuple[tuple[int, int], int]  # (height, width) of the target in patches, text tokens
Shapes = dict[str, tuple[tuple[int, ...], bool]]  # of a rank's parameters, and whether each is trained

MODULATION, GATHERED = "gathered modulation", "gathered tokens"


@contextmanager
def dry_mesh(tp: int, sp: bool) -> Iterator[Mesh]:
    """Rank 0 of a tensor-parallel group of `tp`, whose collectives do nothing; data parallelism is arithmetic here."""
    dist.init_process_group("fake", rank=0, world_size=tp, store=FakeStore())
    # As Mesh.start sets it, or Megatron's layers warn.
    ordered = patch.dict(os.environ, {"CUDA_DEVICE_MAX_CONNECTIONS": "1"})
    ordered.start()
    try:
        world = dist.group.WORLD
        alone = dist.new_group([0])
        assert world is not None and isinstance(alone, dist.ProcessGroup)
        yield Mesh(0, tp, 0, tp, 0, 1, sp, torch.device("cpu"), world, alone, world)
    finally:
        ordered.stop()
        dist.destroy_process_group()


class DryProvider(MegatronProvider):
    """Megatron's layers, which tell the ledger what is modulation and what are gathered tokens."""

    def __init__(self, mesh: Mesh, dtype: torch.dtype, ledger: Ledger, form: Form) -> None:
        super().__init__(mesh, dtype, bias_apart=form == "cuda")
        self._ledger, self._form = ledger, form

    def modulation(self, inputs: int, outputs: int) -> nn.Module:
        layer, inside = super().modulation(inputs, outputs), ExitStack()

        def enter(module: nn.Module, given: Any) -> None:
            inside.enter_context(self._ledger.tagged(MODULATION))

        def leave(module: nn.Module, given: Any, out: Any) -> None:
            inside.close()

        layer.register_forward_pre_hook(enter)
        layer.register_forward_hook(leave)
        return layer

    def gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        with self._ledger.tagged(MODULATION):
            return super().gather(parts)

    def enter(self, x: Tensor) -> Tensor:
        with self._ledger.tagged(GATHERED if self.mesh.sp else OTHER):
            return super().enter(x)

    def packed_attention(self, heads: int, head_dim: int) -> Callable[..., Tensor] | None:
        if self._form == "cpu" or self.dtype == torch.float32:
            return None
        return cast(Callable[..., Tensor], varlen_attn)


@dataclass(frozen=True)
class Pass:
    """What one unit's forward and backward needs on a rank, in bytes; weights and gradient buffers are not in it."""

    kept: dict[str, int]  # alive between forward and backward, by tag
    peak: int
    flops: int  # of the matrix products that ran, recomputed ones too
    traffic: dict[str, int]  # bytes of the whole tensors of tensor-parallel collectives


def dry_shapes(config: MMDiTConfig, mesh: Mesh, dtype: torch.dtype) -> Shapes:
    """This rank's parameters in the order of first use."""
    with torch.device("meta"):
        model = MMDiT(config, MegatronProvider(mesh, dtype))
    return {name: (tuple(p.shape), p.requires_grad) for name, p in model.named_parameters()}


def dry_pass(
    config: MMDiTConfig, mesh: Mesh, dtype: torch.dtype, samples: Sequence[Sample], form: Form, **run: Any
) -> Pass:
    """Forward and backward of a unit of `samples`. `run` goes to the model (recompute settings)."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(fused, "compiled", _kept_as_compiled.__getitem__))
        device = torch.device("meta" if form == "cuda" else "cpu")
        cpu_stand_in.install()
        stack.enter_context(patch.object(torch.cuda, "current_device", lambda: device))
        layout = Layout.build(
            [[(0, *size)] for size, _ in samples], [text for _, text in samples], config.axes_dims_rope
        )
        ledger = Ledger(_attention_flops(layout))
        with torch.device("meta"):
            model = MMDiT(config, DryProvider(mesh, dtype, ledger, form), **run)
        if form == "cpu":
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        allocate(model, device, dtype)
        ledger.ignore(model.parameters())
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_into_buffer)
        batch = unit_batch(config, layout, dtype, device)
        objective = FlowObjective(
            FlowConfig(), seed=0, mean=torch.zeros(1), std=torch.ones(1), empty=torch.zeros(1, 1), axes=()
        )
        stack.enter_context(ledger)
        loss, _ = objective.loss(model, batch)
        kept = dict(ledger.by_tag)
        loss.backward()
        return Pass(kept, ledger.peak, ledger.flops, dict(ledger.traffic))


def _into_buffer(parameter: Tensor) -> None:
    """As Megatron's DDP: a gradient is added to its buffer at once and dropped."""
    parameter.grad = None


def unit_batch(config: MMDiTConfig, layout: Layout, dtype: torch.dtype, device: torch.device) -> Batch:
    count, rows, text = len(layout.image_lengths), sum(layout.image_lengths), sum(layout.text_lengths)
    image = torch.empty(rows, config.in_channels, dtype=dtype, device=device)
    prompt = torch.empty(text, config.joint_attention_dim, dtype=dtype, device=device)
    sigma, weight = (torch.empty(count, device=device) for _ in range(2))
    target = torch.empty(rows, config.in_channels, device=device)
    keys = tuple(map(str, range(count)))
    return Batch(keys, image, prompt, sigma, target, weight, layout.to(device) if device.type == "meta" else layout)


def _attention_flops(layout: Layout) -> Callable[[Any, tuple[Any, ...]], int | None]:
    """FLOPs of calls of attention kernels: 4 k h pairs forward and 8 backward, as model/count.py has them.

    torch's own count takes every sample for the longest, and what flash attention's backward computes again.
    """
    joint = [i + t for i, t in zip(layout.image_lengths, layout.text_lengths, strict=True)]
    every = sum(keys * keys for keys in joint)
    images = sum(i * keys for i, keys in zip(layout.image_lengths, joint, strict=True))

    def flops(func: Any, args: tuple[Any, ...]) -> int | None:
        name = func._opname
        backward = name.endswith("_backward")
        first = 1 if backward else 0
        if func.namespace == "torch_attn":  # packed [n, h, k]; the lengths are values, which are not there
            q, k = args[first : first + 2]
            return (8 if backward else 4) * q.shape[1] * q.shape[2] * (every if len(q) == len(k) else images)
        if name.startswith("_scaled_dot_product_flash_attention_for_cpu"):  # [1, h, n, k]
            q, k = args[first : first + 2]
            return (8 if backward else 4) * q.shape[1] * q.shape[3] * q.shape[2] * k.shape[2]
        return None

    return flops


class _Modulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, owner: Tensor) -> Tensor:
        mean, rstd = (x.new_empty(x.shape[0], 1, dtype=torch.float32) for _ in range(2))
        ctx.save_for_backward(x, scale, owner, mean, rstd)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, scale, *_ = ctx.saved_tensors
        rows = torch.empty_like(x)  # the gradient of the gathered scale, before it is summed by sample
        del rows
        return torch.empty_like(x), torch.empty_like(scale), torch.empty_like(scale), None


class _AddGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, update: Tensor, owner: Tensor) -> Tensor:
        ctx.save_for_backward(gate, update, owner)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        gate, update, _ = ctx.saved_tensors
        rows = torch.empty_like(update)  # the gradient of the gathered gate, before it is summed by sample
        del rows
        return grad, torch.empty_like(gate), torch.empty_like(update), None


class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, cos, sin, x.new_empty(*x.shape[:-1], 1, dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, *_ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight), None, None


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, bias)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, bias = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(bias)


# The plain forms of model/fused.py, and what stands in for each once compiled.
_kept_as_compiled: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    fused.plain_modulate: _Modulate.apply,
    fused.plain_add_gated: _AddGated.apply,
    fused.plain_norm_rotate: _NormRotate.apply,
    fused.plain_bias_gelu: _BiasGelu.apply,
}
