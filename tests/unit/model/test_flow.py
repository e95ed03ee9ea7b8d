"""Rectified flow: its convention, its densities, and draws that depend on nothing but their name."""

import math

import pytest
import torch

from model.flow import FlowConfig, draw, dynamic_mu, noised, sigma_at

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
    assert 0 < sigma_at(FlowConfig(), 0.0, 256) < sigma_at(FlowConfig(), 1.0, 256) < 1


@pytest.mark.parametrize(("tokens", "factor"), [(256, 1.649), (1600, 1.764), (4096, 2.001), (6889, 2.303)])
def test_the_dynamic_shift_is_the_released_schedulers(tokens: int, factor: float) -> None:
    assert math.exp(dynamic_mu(tokens)) == pytest.approx(factor, abs=5e-4)
    shifted = sigma_at(FlowConfig(density="uniform", shift="dynamic"), 0.5, tokens)
    assert shifted == pytest.approx(factor / (factor + 1), abs=1e-4)


def test_the_prompt_is_dropped_as_often_as_configured() -> None:
    config = FlowConfig(prompt_dropout=0.25)
    dropped = sum(draw(config, (1, 2, 2), 0, 0, str(k)).dropped for k in range(2000))
    assert abs(dropped / 2000 - 0.25) < 0.03
