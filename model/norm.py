"""The RMS norms (diffusers normalization.py, RMSNorm): mean square in fp32, no bias."""

import torch
from torch import Tensor, nn

from model.fused import EPS, norm_rotate


class TokenNorm(nn.Module):
    """x / rms(x) * weight over the width of tokens [n, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS)
        return (x * scale).to(self.weight.dtype) * self.weight


class HeadNorm(nn.Module):
    """The same over the width of heads [n, h, k], then MSRoPE, as one step of the module that owns the weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return norm_rotate(x, self.weight, cos, sin)
