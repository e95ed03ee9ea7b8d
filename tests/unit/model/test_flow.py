"""Rectified flow: its convention, its densities, and draws that depend on nothing but their name."""

import math

import pytest
import torch

from model.config import FlowConfig
from model.flow import draw, dynamic_mu, noised, sigma_at, weight_at

SHAPE = (4, 6, 8)


def test_sigma_one_is_pure_noise_and_velocity_points_from_data_to_noise() -> None:
    data, noise = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(noised(data, noise, 1.0)[0], noise)
    assert torch.equal(noised(data, noise, 0.0)[0], data)
    point, velocity = noised(data, noise, 0.3)
    assert torch.allclose(point - 0.3 * velocity, data, atol=1e-6)


def test_a_draw_is_named_by_seed_step_and_sample_and_by_nothing_else() -> None:
    config = FlowConfig()
    first = draw(config, SHAPE, 1, 5, "a")
    torch.manual_seed(999)
    again = draw(config, SHAPE, 1, 5, "a")
    assert first.sigma == again.sigma and torch.equal(first.noise, again.noise)
    for other in (draw(config, SHAPE, 2, 5, "a"), draw(config, SHAPE, 1, 6, "a"), draw(config, SHAPE, 1, 5, "b")):
        assert other.sigma != first.sigma and not torch.equal(other.noise, first.noise)
    assert not torch.equal(first.noise, first.posterior)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.7), (1.0, 1.3)])
def test_logit_normal_draws_have_the_mean_and_spread_asked_for(mean: float, std: float) -> None:
    config = FlowConfig(mean=mean, std=std)
    logits = torch.tensor(
        [math.log(s / (1 - s)) for k in range(4000) if (s := sigma_at(config, (k + 0.5) / 4000, 256))]
    )
    assert logits.mean().item() == pytest.approx(mean, abs=0.01)
    assert logits.std().item() == pytest.approx(std, rel=0.01)


def test_the_ends_of_the_density_stay_inside_zero_and_one() -> None:
    for density in ("logit_normal", "uniform", "mode", "beta"):
        ends = sorted(sigma_at(FlowConfig(density=density), quantile, 256) for quantile in (0.0, 1.0))
        assert 0 < ends[0] < ends[1] < 1


@pytest.mark.parametrize(("tokens", "factor"), [(256, 1.649), (1600, 1.764), (4096, 2.001), (6889, 2.303)])
def test_the_dynamic_shift_is_the_released_schedulers(tokens: int, factor: float) -> None:
    assert math.exp(dynamic_mu(tokens)) == pytest.approx(factor, abs=5e-4)
    shifted = sigma_at(FlowConfig(density="uniform", shift="dynamic"), 0.5, tokens)
    assert shifted == pytest.approx(factor / (factor + 1), abs=1e-4)


def test_the_prompt_is_dropped_as_often_as_configured() -> None:
    config = FlowConfig(prompt_dropout=0.25)
    dropped = sum(draw(config, (1, 2, 2), 0, 0, str(k)).dropped for k in range(2000))
    assert abs(dropped / 2000 - 0.25) < 0.03


def grid(config: FlowConfig, count: int = 4001, tokens: int = 256) -> torch.Tensor:
    return torch.tensor([sigma_at(config, (k + 0.5) / count, tokens) for k in range(count)], dtype=torch.float64)


def test_beta_draws_have_their_mean_and_variance() -> None:
    sigmas = grid(FlowConfig(density="beta", alpha=2.0, beta=5.0))
    assert sigmas.mean().item() == pytest.approx(2 / 7, abs=1e-3)
    assert sigmas.var().item() == pytest.approx(2 * 5 / (7**2 * 8), rel=1e-2)


def test_mode_draws_are_uniform_at_scale_zero_and_crowd_the_middle_above() -> None:
    flat, crowded = grid(FlowConfig(density="mode", mode_scale=0.0)), grid(FlowConfig(density="mode"))
    assert torch.allclose(flat.sort().values, grid(FlowConfig(density="uniform")), atol=1e-6)
    inside = ((crowded > 0.25) & (crowded < 0.75)).double().mean().item()
    assert inside > 0.55
    # Equation 20 of arXiv 2403.03206 at one point, worked out by hand.
    u, s = 0.25, 1.29
    wanted = 1 - u - s * (math.cos(math.pi * u / 2) ** 2 - 1 + u)
    assert sigma_at(FlowConfig(density="mode"), u, 256) == pytest.approx(wanted, abs=1e-12)


def test_a_terminal_stretch_ends_where_the_released_scheduler_does() -> None:
    config = FlowConfig(density="uniform", shift="dynamic", terminal=0.02)
    assert sigma_at(config, 1 / 1000, 4096) == pytest.approx(0.02, abs=1e-9)
    assert sigma_at(config, 1 - 1e-9, 4096) == pytest.approx(1, abs=1e-5)


def test_a_terminal_without_a_shift_is_refused() -> None:
    with pytest.raises(ValueError, match=r"flow\.terminal: 0\.02 belongs to a shift"):
        FlowConfig(terminal=0.02)


@pytest.mark.parametrize("kind", ["bell", "cosmap"])
def test_published_weights_have_a_mean_of_one_and_are_symmetric(kind: str) -> None:
    config = FlowConfig(weight=kind)
    weights = [weight_at(config, (k + 0.5) / 2000) for k in range(2000)]
    assert sum(weights) / 2000 == pytest.approx(1, abs=1e-3)
    assert weights[100] == pytest.approx(weights[-101], rel=1e-9)
    assert weight_at(FlowConfig(weight="sigma_sqrt"), 0.5) == 4 and weight_at(FlowConfig(), 0.1) == 1
