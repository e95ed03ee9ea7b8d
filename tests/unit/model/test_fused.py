"""Each fused step equals its plain twin: values, and every gradient."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.fused import (
    Rows,
    add_gated,
    bias_gelu,
    compiled,
    modulate,
    norm_rotate,
    plain_add_gated,
    plain_bias_gelu,
    plain_modulate,
    plain_norm_rotate,
)

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def compare(fused: list[Tensor], plain: list[Tensor], dtype: torch.dtype) -> None:
    for got, want in zip(fused, plain, strict=True):
        assert got.dtype == want.dtype
        assert (got - want).abs().max() <= TOLERANCE[dtype] * want.abs().max()


def both(inputs: list[Tensor], fused, plain) -> tuple[list[Tensor], list[Tensor]]:  # type: ignore[no-untyped-def]
    results = []
    for function in (fused, plain):
        leaves = [value.clone().requires_grad_() for value in inputs]
        out = function(*leaves)
        push = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, push)])
    return results[0], results[1]


def rows(seed: int, samples: int) -> Rows:
    """Runs of mixed lengths, and tail rows that go to sample 0 again, as padding does."""
    lengths = torch.randint(1, 9, (samples,), generator=torch.Generator().manual_seed(seed))
    owner = torch.repeat_interleave(torch.arange(samples), lengths)
    return Rows.of(torch.cat([owner, torch.zeros(seed % 3, dtype=torch.long)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(10))
def test_modulate_and_add_gated_equal_their_plain_twins(seed: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    where = rows(seed, 1 + seed % 4)
    x, update = torch.randn(2, len(where.owner), 24).to(dtype).unbind()
    scale, shift = torch.randn(2, 1 + seed % 4, 24).to(dtype).unbind()
    compare(
        *both(
            [x, scale, shift],
            lambda x, a, b: modulate(x, a, b, where),
            lambda x, a, b: plain_modulate(x, a, b, where.owner),
        ),
        dtype,
    )
    compare(
        *both(
            [x, scale, update],
            lambda x, g, u: add_gated(x, g, u, where),
            lambda x, g, u: plain_add_gated(x, g, u, where.owner),
        ),
        dtype,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(10))
def test_norm_rotate_equals_its_plain_twin(seed: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    n, h, k = 1 + seed, 1 + seed % 3, 16
    x, weight, angle = torch.randn(n, h, k).to(dtype), torch.randn(k).to(dtype), torch.randn(n, k // 2) * 3
    compare(
        *both(
            [x, weight],
            lambda x, w: norm_rotate(x, w, angle.cos(), angle.sin()),
            lambda x, w: plain_norm_rotate(x, w, angle.cos(), angle.sin()),
        ),
        dtype,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(10))
def test_bias_gelu_equals_the_gelu_of_a_linear_that_adds_its_bias_itself(seed: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    n, inputs, outputs = 1 + 3 * seed, 8 + seed, 16
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((n, inputs), (outputs, inputs), (outputs,)))
    apart, inside = both(
        [x, weight, bias],
        lambda x, w, b: bias_gelu(F.linear(x, w), b),
        lambda x, w, b: F.gelu(F.linear(x, w, b), approximate="tanh"),
    )
    compare(apart, inside, dtype)


# torch's own compiler still imports torch.jit.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.long), torch.bfloat16])
def test_the_compiled_twins_of_cuda_equal_the_plain_ones_for_changing_rows(dtype: torch.dtype) -> None:
    for seed, samples in ((1, 2), (2, 3), (5, 4)):
        torch.manual_seed(seed)
        where = rows(seed, samples)
        n = len(where.owner)
        x, update = torch.randn(2, n, 24).unbind()
        scale, shift = torch.randn(2, samples, 24).unbind()
        angle = torch.randn(n, 4)
        for plain, inputs, rest in (
            (plain_modulate, [x, scale, shift], [where.owner]),
            (plain_add_gated, [x, scale, update], [where.owner]),
            (plain_norm_rotate, [x.unflatten(-1, (3, 8)), torch.randn(8)], [angle.cos(), angle.sin()]),
            (plain_bias_gelu, [x, torch.randn(24)], []),
        ):
            compare(
                *both(
                    [value.to(dtype) for value in inputs],
                    lambda *a, p=plain, r=rest: compiled(p)(*a, *r),
                    lambda *a, p=plain, r=rest: p(*a, *r),
                ),
                dtype,
            )
