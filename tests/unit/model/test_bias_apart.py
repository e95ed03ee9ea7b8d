"""A column linear that hands its bias out, as on CUDA, is the one that adds it itself."""

import pytest
import torch

from model.mmdit import MMDiT
from model.provider import Plain
from tests.unit.model.parity import ours, reference, run_ours, samples, sizes


@pytest.mark.parametrize("seed", range(20))
def test_the_mmdit_is_the_same_with_its_biases_apart_gradients_too(seed: int) -> None:
    config = sizes(num_layers=1 + seed % 3)
    inside = ours(config, reference(config, seed))
    apart = MMDiT(config, Plain(bias_apart=True))
    apart.load_state_dict(inside.state_dict(), strict=True)
    unit = samples(config, seed, 1 + seed % 4)
    outputs = [run_ours(model, unit) for model in (inside, apart)]
    push = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(seed))
    for out in outputs:
        (out * push).sum().backward()
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-6 * outputs[0].abs().max()
    for (name, left), (_, right) in zip(inside.named_parameters(), apart.named_parameters(), strict=True):
        assert (left.grad is None) == (right.grad is None), name
        if left.grad is not None and right.grad is not None:
            assert (left.grad - right.grad).abs().max() <= 1e-5 * left.grad.abs().max().clamp(min=1e-3), name


def test_the_device_decides_who_adds_the_bias() -> None:
    x = torch.randn(3, 4)
    column, apart = Plain().column_and_bias(4, 8), Plain(bias_apart=True).column_and_bias(4, 8)
    output, none = column(x)
    assert none is None
    assert torch.allclose(output, x @ column.weight.T + column.bias, atol=1e-6)
    product, bias = apart(x)
    assert bias is apart.bias
    assert torch.equal(product, x @ apart.weight.T)
    meta, handed = column.to("meta")(x.to("meta"))  # any device but the CPU
    assert handed is column.bias and meta.shape == (3, 8)
