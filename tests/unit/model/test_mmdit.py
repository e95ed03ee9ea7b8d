"""The MMDiT is the reference's, sample by sample, whatever shares its unit."""

import pytest
import torch

from tests.unit.model.parity import ours, reference, run_ours, run_theirs, samples, sizes


@pytest.mark.parametrize("seed", range(20))
def test_a_packed_unit_of_mixed_samples_equals_diffusers_forward_and_every_gradient(seed: int) -> None:
    config = sizes(num_layers=1 + seed % 3, num_attention_heads=2 + seed % 3)
    theirs = reference(config, seed)
    model = ours(config, theirs)
    unit = samples(config, seed, 1 + seed % 5)
    mine, wanted = run_ours(model, unit), run_theirs(theirs, unit)
    assert (mine - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    push = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(seed))
    (mine * push).sum().backward()
    (wanted * push).sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        want = gradients[name] if gradients[name] is not None else torch.zeros_like(parameter)
        got = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        assert (got - want).abs().max() <= 1e-5 * want.abs().max().clamp(min=1e-3), name


def test_bfloat16_is_as_near_to_fp32_as_diffusers_bfloat16_is() -> None:
    config = sizes()
    theirs = reference(config, 3)
    unit = samples(config, 3, 4)
    exact = run_theirs(theirs, unit)
    model = ours(config, theirs).bfloat16()
    with torch.no_grad():
        mine = (run_ours(model, unit).float() - exact).norm()
        peer = (run_theirs(theirs.bfloat16(), unit).float() - exact).norm()
    assert mine <= 1.25 * peer


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


def test_golden_value_of_the_published_recipe() -> None:
    """One picture of 3 x 4, five text tokens, weights 0.3 sin(1.7 n + 2.4 j): reference numbers of the fp32 code."""
    config = sizes(num_layers=2, num_attention_heads=2)
    model = ours(config, reference(config, 0))
    norms = ("norm_q.weight", "norm_k.weight", "norm_added_q.weight", "norm_added_k.weight", "txt_norm.weight")
    with torch.no_grad():
        for n, (name, parameter) in enumerate(sorted(model.named_parameters())):
            j = torch.arange(parameter.numel(), dtype=torch.float64)
            value = 0.3 * torch.sin(1.7 * n + 2.4 * j) + name.endswith(norms)
            parameter.copy_(value.reshape(parameter.shape))
        image = torch.sin(0.3 + 1.1 * torch.arange(12 * 16, dtype=torch.float64)).float().reshape(12, 16)
        text = torch.cos(0.2 + 0.7 * torch.arange(5 * 24, dtype=torch.float64)).float().reshape(5, 24)
        out = run_ours(model, [([(0, 3, 4)], image, text, 0.4)])
    assert out.sum().item() == pytest.approx(-53.140466, abs=2e-4)
    assert out.abs().sum().item() == pytest.approx(448.794226, abs=2e-4)
    assert out.flatten()[:4].tolist() == pytest.approx([-3.266796, -2.186052, 2.410226, 3.444029], abs=1e-5)
    assert out.flatten()[-4:].tolist() == pytest.approx([2.558291, -1.619203, -3.264081, 0.289272], abs=1e-5)
