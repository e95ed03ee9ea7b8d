"""Latents as the MMDiT sees them: normalised a channel, and packed two by two into tokens."""

import torch
from torch import Tensor

# Latent cells a side of one token (config.json: patch_size).
PATCH = 2


class LatentError(ValueError):
    """A latent's size does not fit the packing."""


def pack(latent: Tensor) -> Tensor:
    """`latent` [c, y, x] as tokens [y x / 4, 4 c], row by row; feature 4 c + 2 dy + dx (pipeline_qwenimage.py)."""
    c, y, x = latent.shape
    if y % PATCH or x % PATCH:
        raise LatentError(f"a latent of {y}x{x} does not divide into {PATCH}x{PATCH} patches: both must be even")
    patches = latent.reshape(c, y // PATCH, PATCH, x // PATCH, PATCH).permute(1, 3, 0, 2, 4)
    return patches.reshape(-1, c * PATCH * PATCH)


def unpack(tokens: Tensor, y: int, x: int) -> Tensor:
    """`tokens` [y x / 4, 4 c] as the latent [c, y, x] that `pack` took."""
    if tokens.shape[0] * PATCH * PATCH != y * x or y % PATCH or x % PATCH or tokens.shape[1] % (PATCH * PATCH):
        raise LatentError(
            f"{tokens.shape[0]} tokens of {tokens.shape[1]} features are no latent of {y}x{x}: "
            f"that takes {y * x // (PATCH * PATCH)} tokens of {PATCH * PATCH} features a channel"
        )
    patches = tokens.reshape(y // PATCH, x // PATCH, -1, PATCH, PATCH).permute(2, 0, 3, 1, 4)
    return patches.reshape(-1, y, x)


def normalise(latent: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`latent` [..., c, y, x] in float32 with each channel's `mean` [c] taken off and divided by its `std` [c]."""
    return (latent.to(torch.float32) - mean[:, None, None]) / std[:, None, None]


def denormalise(latent: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The inverse of `normalise`: what the VAE decodes."""
    return latent.to(torch.float32) * std[:, None, None] + mean[:, None, None]
