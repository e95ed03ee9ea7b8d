"""Rectified flow in the released code's convention: x = (1 - sigma) data + sigma noise, velocity = noise - data.

sigma 1 is pure noise. The report's equation 1 runs time the other way and its velocity has the other sign; released
weights follow the code (diffusers scheduling_flow_match_euler_discrete.py). All that is random about a sample is drawn
from (run seed, step, sample), so it does not depend on how many ranks train or which of them holds the sample.
"""

import math
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from model.init import seed_of


class FlowConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """How a sample's noise level, noise and condition are drawn."""

    density: Literal["logit_normal", "uniform"] = "logit_normal"  # the report names the first, without its numbers
    mean: float = 0.0  # of the logit
    std: float = Field(default=1.0, gt=0)
    # A shift of sigma in training, which the report does not mention: dynamic is inference's, by target tokens.
    shift: Literal["none", "fixed", "dynamic"] = "none"
    fixed_shift: float = Field(default=1.0, gt=0)  # exp(mu) of the fixed shift
    posterior: Literal["mean", "sample"] = "sample"  # of the VAE, for targets
    prompt_dropout: float = Field(default=0.1, ge=0, lt=1)  # trained on the empty prompt (Qwen-Image-2.0)


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
    sigma = quantile
    if config.density == "logit_normal":
        # The open interval: a quantile of exactly 0 or 1 has no logit.
        inside = min(max(quantile, 1e-7), 1 - 1e-7)
        normal = math.sqrt(2) * torch.erfinv(torch.tensor(2 * inside - 1, dtype=torch.float64)).item()
        sigma = 1 / (1 + math.exp(-(config.mean + config.std * normal)))
    if config.shift == "none":
        return sigma
    factor = config.fixed_shift if config.shift == "fixed" else math.exp(dynamic_mu(tokens))
    return factor * sigma / (1 + (factor - 1) * sigma)


def dynamic_mu(tokens: int) -> float:
    """mu of the released scheduler: 0.5 at 256 target tokens, 0.9 at 8192, linear between and beyond."""
    return 0.5 + (tokens - 256) * (0.9 - 0.5) / (8192 - 256)


def noised(data: Tensor, noise: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """The point at `sigma` between data and noise, and the velocity there."""
    return (1 - sigma) * data + sigma * noise, noise - data
