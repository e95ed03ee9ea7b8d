"""Rectified flow in the released code's convention: x = (1 - sigma) data + sigma noise, velocity = noise - data.

sigma 1 is pure noise. The report's equation 1 runs time the other way and its velocity has the other sign; released
weights follow the code (diffusers scheduling_flow_match_euler_discrete.py). All that is random about a sample is drawn
from (run seed, step, sample), so it does not depend on how many ranks train or which of them holds the sample.
"""

import math
from typing import NamedTuple

import torch
from scipy.special import betaincinv, ndtri
from torch import Tensor

from model.config import FlowConfig
from model.init import seed_of

# The density's open interval: a quantile of exactly 0 or 1 has no logit.
_EDGE = 1e-7

# The noise levels of a 1000-step grid, whose last one a terminal stretch brings to its end.
_GRID = 1000


class Draw(NamedTuple):
    """One sample's share of chance. `posterior` and `noise` are fp32 of the latent's shape."""

    sigma: float
    dropped: bool
    posterior: Tensor
    noise: Tensor


def draw(config: FlowConfig, shape: tuple[int, ...], seed: int, step: int | str, key: str) -> Draw:
    """The draw of sample `key` (a latent of `shape` [c, y, x]) at `step`."""
    generator = torch.Generator().manual_seed(seed_of(seed, step, key))
    quantile = torch.rand((), generator=generator, dtype=torch.float64).item()
    dropped = torch.rand((), generator=generator).item() < config.prompt_dropout
    posterior = torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    tokens = shape[-2] * shape[-1] // 4
    return Draw(sigma_at(config, quantile, tokens), dropped, posterior, noise)


def sigma_at(config: FlowConfig, quantile: float, tokens: int) -> float:
    """The noise level at a quantile in [0, 1) of the density, shifted for a target of `tokens`."""
    sigma = _density(config, min(max(quantile, _EDGE), 1 - _EDGE))
    if config.shift == "none":
        return sigma
    factor = config.fixed_shift if config.shift == "fixed" else math.exp(dynamic_mu(tokens))
    shifted = _shifted(sigma, factor)
    if not config.terminal:
        return shifted
    # The released scheduler's stretch, for the grid of as many steps as the model's timesteps.
    stretch = (1 - config.terminal) / (1 - _shifted(1 / _GRID, factor))
    return max(1 - (1 - shifted) * stretch, _EDGE)


def _density(config: FlowConfig, quantile: float) -> float:
    if config.density == "logit_normal":
        return 1 / (1 + math.exp(-(config.mean + config.std * float(ndtri(quantile)))))
    if config.density == "mode":
        bend = math.cos(math.pi / 2 * quantile) ** 2 - 1 + quantile
        return min(max(1 - quantile - config.mode_scale * bend, _EDGE), 1 - _EDGE)
    if config.density == "beta":
        return min(max(float(betaincinv(config.alpha, config.beta, quantile)), _EDGE), 1 - _EDGE)
    return quantile


def _shifted(sigma: float, factor: float) -> float:
    return factor * sigma / (1 + (factor - 1) * sigma)


def weight_at(config: FlowConfig, sigma: float) -> float:
    """What the squared error of a sample at `sigma` counts; 1 unless configured."""
    if config.weight == "sigma_sqrt":
        return float(sigma**-2)
    if config.weight == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
    if config.weight == "bell":
        least = math.exp(-0.5)
        mean = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - least  # over sigma uniform in [0, 1]
        return (math.exp(-2 * (sigma - 0.5) ** 2) - least) / mean
    return 1.0


def dynamic_mu(tokens: int) -> float:
    """mu of the released scheduler: 0.5 at 256 target tokens, 0.9 at 8192, linear between and beyond."""
    return 0.5 + (tokens - 256) * (0.9 - 0.5) / (8192 - 256)


def noised(data: Tensor, noise: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """The point at `sigma` between data and noise, and the velocity there."""
    return (1 - sigma) * data + sigma * noise, noise - data
