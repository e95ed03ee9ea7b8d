"""The MMDiT is the reference's, sample by sample, whatever shares its unit."""

import pytest
import torch

from tests.unit.model.parity import (
    assert_bfloat16_as_near,
    assert_equal,
    ours,
    reference,
    run_ours,
    run_theirs,
    samples,
    sizes,
)


@pytest.mark.parametrize("seed", range(20))
def test_a_packed_unit_of_mixed_samples_equals_diffusers_forward_and_every_gradient(seed: int) -> None:
    config = sizes(num_layers=1 + seed % 3, num_attention_heads=2 + seed % 3)
    theirs = reference(config, seed)
    assert_equal(ours(config, theirs), theirs, samples(config, seed, 1 + seed % 5), seed)


def test_bfloat16_is_as_near_to_fp32_as_diffusers_bfloat16_is() -> None:
    configs = [sizes(num_layers=2, num_attention_heads=1 + seed % 3) for seed in range(20)]
    assert_bfloat16_as_near((config, samples(config, 200 + seed, 2)) for seed, config in enumerate(configs))


def test_nothing_attends_across_samples() -> None:
    config = sizes()
    model = ours(config, reference(config, 5))
    unit = samples(config, 5, 3)
    with torch.no_grad():
        clean = run_ours(model, unit)
        grids, image, text, sigma = unit[1]
        unit[1] = (grids, image * 0 + 1e4, text * 0 - 1e4, sigma)
        poisoned = run_ours(model, unit)
    first, last = len(unit[0][1]), len(unit[2][1])
    assert torch.allclose(clean[:first], poisoned[:first], atol=1e-6)
    assert torch.allclose(clean[-last:], poisoned[-last:], atol=1e-6)


def test_never_trained_weights_are_those_the_reference_leaves_without_gradient() -> None:
    config = sizes()
    theirs = reference(config, 1)
    run_theirs(theirs, samples(config, 1, 2)).sum().backward()
    idle = {n for n, p in theirs.named_parameters() if p.grad is None or not p.grad.any()}
    model = ours(config, theirs)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == idle
