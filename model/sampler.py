"""Noise to latents: the shifted grid of sigmas, classifier-free guidance, Euler steps.

The same numbers as diffusers' FlowMatchEulerDiscreteScheduler, QwenImagePipeline and QwenImageEditPlusPipeline. Samples
of a batch may differ in size and in their references; each follows its own grid.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from pydantic import BaseModel
from torch import Tensor

from model.latent import PATCH, pack
from model.layout import Layout
from model.mmdit import MMDiT

# Velocities [i, 4 c] of each sample, given its tokens [i, 4 c] and sigmas [b] in [0, 1].
Velocity = Callable[[list[Tensor], Tensor], list[Tensor]]


class SamplerError(ValueError):
    """Sampling was asked for something it cannot do."""


class ShiftConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """How sigmas lean towards noise as pictures grow: names and values of the released scheduler_config.json."""

    base_image_seq_len: int = 256
    max_image_seq_len: int = 8192
    base_shift: float = 0.5
    max_shift: float = 0.9
    shift_terminal: float = 0.02  # the last sigma before 0

    def mu(self, tokens: int) -> float:
        """The shift for a target of `tokens` image tokens (references do not count)."""
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return self.base_shift + slope * (tokens - self.base_image_seq_len)


def grid(tokens: int, steps: int, shift: ShiftConfig | None = None) -> Tensor:
    """Sigmas [steps + 1] from 1 to 0, float32, for a target of `tokens` image tokens.

    linspace(1, 1 / steps) shifted by e^mu / (e^mu + 1 / sigma - 1), stretched to end at shift_terminal, then 0.
    """
    if steps < 1:
        raise SamplerError(f"{steps} sampling steps: at least 1 is needed")
    shift = shift or ShiftConfig()
    sigma = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    if steps > 1:  # One step goes from noise to data whatever the shift; the stretch would divide by zero.
        growth = math.exp(shift.mu(tokens))
        sigma = growth / (growth + 1 / sigma - 1)
        sigma = 1 - (1 - sigma) * (1 - shift.shift_terminal) / (1 - sigma[-1])
    return torch.cat([sigma, sigma.new_zeros(1)]).float()


def layered_grid(tokens: int, steps: int) -> Tensor:
    """Sigmas [steps + 1] of a layered sample whose condition has `tokens` image tokens, float32.

    linspace(1, 0) without its end, shifted by mu / (mu + 1 / sigma - 1), mu = sqrt(tokens / 256), then 0; no stretch
    (pipeline_qwenimage_layered.py).
    """
    if steps < 1:
        raise SamplerError(f"{steps} sampling steps: at least 1 is needed")
    sigma = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
    mu = math.sqrt(tokens / 256)
    sigma = mu / (mu + 1 / sigma - 1)
    return torch.cat([sigma, sigma.new_zeros(1)]).float()


def conditioned(
    model: MMDiT,
    cells: Sequence[tuple[int, int]],
    text: Sequence[Tensor],
    references: Sequence[Sequence[Tensor]] | None = None,
) -> Velocity:
    """The velocity of samples whose latents are `cells` (y, x) large, each given its prompt's hidden states [t, e].

    `references` [sample] are normalised latents [c, y, x] of any sizes: their tokens follow the target's, as frames
    1, 2, ..., and only the target has a velocity.
    """
    shown = references or [[]] * len(cells)
    pictures = [
        [(frame, y // PATCH, x // PATCH) for frame, (y, x) in enumerate([cell, *(r.shape[-2:] for r in extra)])]
        for cell, extra in zip(cells, shown, strict=True)
    ]
    layout = Layout.build(pictures, [len(states) for states in text], model.config.axes_dims_rope)
    weight = model.proj_out.weight
    assert isinstance(weight, Tensor)
    layout, dtype = layout.to(weight.device), weight.dtype
    prompts = torch.cat(list(text)).to(weight.device, dtype)
    given = [[pack(reference).float() for reference in extra] for extra in shown]

    def velocity(tokens: list[Tensor], sigma: Tensor) -> list[Tensor]:
        image = torch.cat([part for target, extra in zip(tokens, given, strict=True) for part in (target, *extra)])
        flow = model(image.to(weight.device, dtype), prompts, sigma.to(weight.device), layout)
        return list(flow.to(image.device).split(layout.target_lengths))

    return velocity


def guide(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on velocities [i, 4 c]: away from `negative`, at the length of `positive`, a token each.

    pipeline_qwenimage.py calls it true CFG with norm rescale.
    """
    combined = negative + scale * (positive - negative)
    length = combined.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return combined * (positive.norm(dim=-1, keepdim=True) / length)


def guided(positive: Velocity, negative: Velocity, scale: float) -> Velocity:
    """A velocity under guidance; at a scale of 1 or less it is `positive` alone, as in the pipeline."""
    if scale <= 1:
        return positive

    def velocity(tokens: list[Tensor], sigma: Tensor) -> list[Tensor]:
        pairs = zip(positive(tokens, sigma), negative(tokens, sigma), strict=True)
        return [guide(with_prompt, without, scale) for with_prompt, without in pairs]

    return velocity


def euler(
    velocity: Velocity,
    noise: Sequence[Tensor],
    steps: int,
    shift: ShiftConfig | None = None,
    progress: Callable[[int], None] | None = None,
    grids: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Latent tokens [i, 4 c] of each sample after `steps` Euler steps from `noise`, in float32.

    Each follows its own of `grids` [steps + 1], by default `grid` of its tokens under `shift`. `progress` is told each
    step's number once it is done.
    """
    grids = grids or [grid(tokens.shape[0], steps, shift) for tokens in noise]
    if len(grids) != len(noise) or any(sigma.shape != (steps + 1,) for sigma in grids):
        shapes = [list(sigma.shape) for sigma in grids]
        raise SamplerError(f"grids of {shapes} sigmas for {len(noise)} samples: each needs one of {steps + 1}")
    sigmas = torch.stack(list(grids), dim=1)
    tokens = [sample.float() for sample in noise]
    for step, (now, then) in enumerate(pairwise(sigmas)):
        flow = velocity(tokens, now)
        tokens = [x + (then[k] - now[k]) * v.float() for k, (x, v) in enumerate(zip(tokens, flow, strict=True))]
        if progress:
            progress(step)
    return tokens
