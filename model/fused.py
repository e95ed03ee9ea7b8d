"""The elementwise parts of a block as single steps that keep little for their backward and recompute the rest.

Each has a plain twin below it in ordinary torch: the twin defines it, and tests hold the two equal, gradients too. On
the CPU the fused form walks the samples' runs of rows, so no [rows, d] copy of a modulation is ever made. On CUDA
torch.compile fuses the twin itself, forward and backward, for any number of rows.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6

_LAYER_NORM = torch.ops.aten.native_layer_norm
_LAYER_NORM_BACKWARD = torch.ops.aten.native_layer_norm_backward


class Rows(NamedTuple):
    """The sample that each row of a stream belongs to, and the same as runs (sample, start, stop)."""

    owner: Tensor
    runs: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, owner: Tensor) -> "Rows":
        """Rows with owners `owner` [n]."""
        if owner.device.type != "cpu":
            return cls(owner, ())  # runs are the CPU's; counting them here would wait for the device
        samples, counts = torch.unique_consecutive(owner, return_counts=True)
        stops = counts.cumsum(0).tolist()
        return cls(owner, tuple(zip(samples.tolist(), [0, *stops[:-1]], stops, strict=True)))


def modulate(x: Tensor, scale: Tensor, shift: Tensor, rows: Rows) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift on tokens [n, d], with the [b, d] rows of each token's sample."""
    if not rows.runs:
        return compiled(plain_modulate)(x, scale, shift, rows.owner)
    return _Modulate.apply(x, scale, shift, rows.runs)  # type: ignore[no-untyped-call]


def plain_modulate(x: Tensor, scale: Tensor, shift: Tensor, owner: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale[owner]) + shift[owner]


def add_gated(x: Tensor, gate: Tensor, update: Tensor, rows: Rows) -> Tensor:
    """x + gate * update on tokens [n, d], with the [b, d] gate row of each token's sample."""
    if not rows.runs:
        return compiled(plain_add_gated)(x, gate, update, rows.owner)
    return _AddGated.apply(x, gate, update, rows.runs)  # type: ignore[no-untyped-call]


def plain_add_gated(x: Tensor, gate: Tensor, update: Tensor, owner: Tensor) -> Tensor:
    return x + gate[owner] * update


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """The tanh-approximated GELU of x + bias: products [n, d] of a linear that handed its bias [d] out."""
    return plain_bias_gelu(x, bias) if x.device.type == "cpu" else compiled(plain_bias_gelu)(x, bias)


def plain_bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias, approximate="tanh")


def norm_rotate(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RMSNorm over the width of heads [n, h, k] times `weight` [k], then turned by angles of cos and sin [n, k / 2]."""
    if x.device.type == "cpu":
        return _NormRotate.apply(x, weight, torch.complex(cos, sin))  # type: ignore[no-untyped-call]
    return compiled(plain_norm_rotate)(x, weight, cos, sin)


def plain_norm_rotate(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS)
    normed = (x * scale).to(weight.dtype) * weight
    even, odd = normed.float().unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[:, None], sin[:, None]
    return torch.stack([even * c - odd * s, even * s + odd * c], dim=-1).flatten(-2).type_as(normed)


@cache
def compiled(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`plain` as fused kernels, made at its first call; rows may differ from call to call."""
    return torch.compile(plain, dynamic=True)


class _Modulate(torch.autograd.Function):
    """Keeps x and its statistics; the plain form also keeps the normed x and both gathered modulations.

    A sample's modulation is its layer norm's weight and bias, so torch's own kernels do all of it in one pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, runs: Any) -> Tensor:
        # Modulations and statistics in fp32 whatever the tokens are in.
        x, factor, offset = x.contiguous(), 1 + scale.float(), shift.float()
        out = torch.empty_like(x)
        # A whole pass of layer norm would only serve its statistics.
        mean, rstd = (torch.empty(x.shape[0], 1, dtype=torch.float32) for _ in range(2))
        for sample, start, stop in runs:
            rows = slice(start, stop)
            outs = {"out0": out[rows], "out1": mean[rows], "out2": rstd[rows]}
            _LAYER_NORM.out(x[rows], x.shape[-1:], factor[sample], offset[sample], EPS, **outs)
        ctx.save_for_backward(x, mean, rstd, factor, offset)
        ctx.runs, ctx.dtype = runs, scale.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, mean, rstd, factor, offset = ctx.saved_tensors
        grad, grad_x = grad.contiguous(), torch.empty_like(x)
        grad_scale, grad_offset = torch.zeros_like(factor), torch.zeros_like(offset)
        for sample, start, stop in ctx.runs:
            rows = slice(start, stop)
            saved = x[rows], x.shape[-1:], mean[rows], rstd[rows], factor[sample], offset[sample]
            outs = {"out0": grad_x[rows], "out1": torch.empty_like(factor[0]), "out2": torch.empty_like(offset[0])}
            _LAYER_NORM_BACKWARD.out(grad[rows], *saved, [True, True, True], **outs)
            grad_scale[sample] += outs["out1"]  # a sample may own several runs: its own and the tail's
            grad_offset[sample] += outs["out2"]
        return grad_x, grad_scale.to(ctx.dtype), grad_offset.to(ctx.dtype), None


class _AddGated(torch.autograd.Function):
    """Keeps the update and the [b, d] gates, not a gate a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, update: Tensor, runs: Any) -> Tensor:
        out = torch.empty_like(x)
        for sample, start, stop in runs:
            torch.addcmul(x[start:stop], update[start:stop], gate[sample], out=out[start:stop])
        ctx.save_for_backward(gate, update)
        ctx.runs = runs
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        gate, update = ctx.saved_tensors
        grad_gate = torch.zeros(gate.shape, dtype=torch.float32)
        grad_update = torch.empty_like(update)
        for sample, start, stop in ctx.runs:
            part, out = grad[start:stop], grad_update[start:stop]
            torch.mul(part, update[start:stop], out=out)
            grad_gate[sample] += out.sum(0, dtype=torch.float32)
            torch.mul(part, gate[sample], out=out)
        return grad, grad_gate.to(gate.dtype), grad_update, None


class _NormRotate(torch.autograd.Function):
    """Keeps the heads as the linear gave them, and a factor a head."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, turn: Tensor) -> Tensor:
        wide = x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(EPS).rsqrt_()
        ctx.save_for_backward(x, scale, weight, turn)
        return _turned((wide * scale).to(weight.dtype).mul_(weight).float(), turn).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, scale, weight, turn = ctx.saved_tensors
        normed, wide = x.float() * scale, weight.float()
        back = _turned(grad.float(), turn.conj())
        # Products and sums, not einsum: that one copies both operands into another order first.
        product = back * normed
        grad_weight = product.sum((0, 1))
        along = torch.mv(product.flatten(0, 1), wide).view_as(scale).div_(-x.shape[-1])
        grad_x = back.mul_(wide).addcmul_(normed, along).mul_(scale)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn[:, None]).flatten(-2)
