"""The timestep's embedding (diffusers transformer_qwenimage.py, QwenTimestepProjEmbeddings)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Channels of the sinusoid, and the factor from sigma in [0, 1] to the timestep it is drawn at.
CHANNELS = 256
SCALE = 1000.0

# Rows of the additional condition's table.
CLASSES = 2


def sinusoid(sigma: Tensor) -> Tensor:
    """cos then sin of 1000 sigma at 128 frequencies: [b] to [b, 256] in fp32."""
    half = CHANNELS // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=sigma.device) / half)
    angle = SCALE * (sigma[:, None].float() * frequency)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimestepEmbedder(nn.Module):
    """linear_2(silu(linear_1(sinusoid))); names as in the released checkpoints. Every rank holds it whole."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(CHANNELS, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, sinusoids: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoids)))


class TimeTextEmbed(nn.Module):
    """sigma [b] to the embedding [b, d] that modulates every block.

    sigma is cast to the activations' dtype before the sinusoid, as the reference does: with bf16 that rounds it.
    With `classes` the embedding of each sample's class [b], 0 or 1, is added: the layered weights' is_rgb.
    """

    def __init__(self, width: int, *, classes: bool = False) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(width)
        self.addition_t_embedding = nn.Embedding(CLASSES, width) if classes else None

    def forward(self, sigma: Tensor, dtype: torch.dtype, kind: Tensor | None = None) -> Tensor:
        embedded: Tensor = self.timestep_embedder(sinusoid(sigma.to(dtype)).to(dtype))
        if self.addition_t_embedding is None or kind is None:
            return embedded
        return embedded + self.addition_t_embedding(kind).to(dtype)
