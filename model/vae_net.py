"""The networks of the image VAE: AutoencoderKLQwenImage for one frame, in two dimensions.

Its causal 3-D convolutions pad the past with zeros, so of a single frame they see the last temporal tap alone, and the
temporal convolutions of its resampling never run. The modules bear the released names and take the released tensors
(diffusers autoencoder_kl_qwenimage.py); everything flows channels last.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Bytes of float32 that the norm works on at a time on a CPU: its passes then hit the cache. 2^19 was the best measured.
_BLOCK = 2**19
# The least length of a channel vector that is divided by (torch.nn.functional.normalize).
_EPS = 1e-12
# Upsampling by repetition and then three taps a, b, c is a transposed convolution with the taps c, b + c, a + b, a.
_REPEATED = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))


class Part(nn.Module):
    """A module that holds tensors itself: which it takes of the released folder, and in what shape."""

    def released(self) -> dict[str, tuple[int, ...]]:
        """The released shape of each of its tensors, by name."""
        raise NotImplementedError

    def take(self, tensors: dict[str, Tensor]) -> None:
        """Set its parameters from the released tensors."""
        raise NotImplementedError


class Convolution(Part):
    """A convolution; `frames` is the released kernel's extent in time, 0 where it has none."""

    def __init__(self, inputs: int, outputs: int, side: int, frames: int, stride: int = 1) -> None:
        super().__init__()
        self.frames, self.stride, self.padding = frames, stride, side // 2 if stride == 1 else 0
        self.weight = nn.Parameter(torch.empty(outputs, inputs, side, side))
        self.bias = nn.Parameter(torch.empty(outputs))

    def released(self) -> dict[str, tuple[int, ...]]:
        outputs, inputs, *sides = self.weight.shape
        time = (self.frames,) if self.frames else ()
        return {"weight": (outputs, inputs, *time, *sides), "bias": (outputs,)}

    def take(self, tensors: dict[str, Tensor]) -> None:
        weight = tensors["weight"][:, :, -1] if self.frames else tensors["weight"]
        self.weight = _parameter(weight)
        self.bias = _parameter(tensors["bias"])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class UpsampleConvolution(Part):
    """Nearest upsampling by two and a 3x3 convolution, as one transposed convolution of 4x4: 4/9 of the products."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs, 4, 4))
        self.bias = nn.Parameter(torch.empty(outputs))

    def released(self) -> dict[str, tuple[int, ...]]:
        inputs, outputs = self.weight.shape[:2]
        return {"weight": (outputs, inputs, 3, 3), "bias": (outputs,)}

    def take(self, tensors: dict[str, Tensor]) -> None:
        taps = torch.tensor(_REPEATED)
        weight = torch.einsum("ak,bl,oikl->ioab", taps, taps, tensors["weight"])
        self.weight = _parameter(weight)
        self.bias = _parameter(tensors["bias"])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)


class ChannelNorm(Part):
    """x / |x| * sqrt(c) * gamma over the channels, in float32 inside, and SiLU after it where asked for."""

    def __init__(self, channels: int, activate: bool, axes: int) -> None:
        super().__init__()
        self.activate, self.axes = activate, axes
        self.gamma = nn.Parameter(torch.empty(channels))

    def released(self) -> dict[str, tuple[int, ...]]:
        return {"gamma": (len(self.gamma), *[1] * self.axes)}

    def take(self, tensors: dict[str, Tensor]) -> None:
        self.gamma = _parameter(tensors["gamma"].flatten())

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """The same shape; in `x` itself if `inplace`, where that saves memory."""
        rows = x.permute(0, 2, 3, 1)
        if x.device.type != "cpu":
            c = len(self.gamma)
            normed = F.rms_norm(rows, (c,), self.gamma.to(x.dtype), _EPS**2 / c)
            return (F.silu(normed, inplace=True) if self.activate else normed).permute(0, 3, 1, 2)
        # A view: the rows of a channels-last tensor lie next to each other.
        rows = rows.contiguous()
        out = rows if inplace else torch.empty_like(rows)
        for image, to in zip(rows.flatten(1, 2), out.flatten(1, 2), strict=True):
            self._blocks(image, to)
        return out.permute(0, 3, 1, 2)

    def _blocks(self, rows: Tensor, out: Tensor) -> None:
        """Fill `out` from `rows` [n, c]. Each image is cut alike, so that its place in the batch changes no bit."""
        c = rows.shape[1]
        gain = self.gamma.float() * c**0.5
        size = max(1, _BLOCK // (4 * c))
        for block, to in zip(rows.split(size), out.split(size), strict=True):
            wide = block.float()
            scale = torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp_(min=_EPS).reciprocal_()
            exact = to if to.dtype == torch.float32 else torch.empty_like(wide)
            torch.mul(wide, scale, out=exact).mul_(gain)
            if self.activate:
                F.silu(exact, inplace=True)
            if exact is not to:
                to.copy_(exact)


class ResidualBlock(nn.Module):
    """norm, SiLU, 3x3, norm, SiLU, 3x3, added to the input or, where the channels change, to a 1x1 of it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(inputs, True, 3)
        self.conv1 = Convolution(inputs, outputs, 3, 3)
        self.norm2 = ChannelNorm(outputs, True, 3)
        self.conv2 = Convolution(outputs, outputs, 3, 3)
        self.conv_shortcut = Convolution(inputs, outputs, 1, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv2(self.norm2(self.conv1(self.norm1(x)), inplace=True))
        return inner.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))


class AttentionBlock(nn.Module):
    """One head over all positions of a picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, False, 2)
        self.to_qkv = Convolution(channels, 3 * channels, 1, 0)
        self.proj = Convolution(channels, channels, 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.to_qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(b, 1, h * w, 3 * c)
        mixed = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
        return self.proj(mixed.reshape(b, h, w, c).permute(0, 3, 1, 2)).add_(x)


class MidBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels), ResidualBlock(channels, channels)])
        self.attentions = nn.ModuleList([AttentionBlock(channels)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsample(nn.Module):
    """A zero row below and a zero column on the right, then 3x3 with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), Convolution(channels, channels, 3, 0, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


class Upsample(nn.Module):
    """`UpsampleConvolution` under its released name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), UpsampleConvolution(channels, channels // 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


class Encoder(nn.Module):
    """Pictures [b, c, h, w] to twice z_dim channels, half the height and width for each level after the first."""

    def __init__(
        self, base: int, z_dim: int, mult: tuple[int, ...], blocks: int, attn_scales: tuple[float, ...], channels: int
    ) -> None:
        super().__init__()
        self.conv_in = Convolution(channels, base, 3, 3)
        width, flat = base, list[nn.Module]()
        for level, factor in enumerate(mult):
            if level:
                flat.append(Downsample(width))
            for _ in range(blocks):
                flat.append(ResidualBlock(width, base * factor))
                width = base * factor
                if 2.0**-level in attn_scales:
                    flat.append(AttentionBlock(width))
        self.down_blocks = nn.ModuleList(flat)
        self.mid_block = MidBlock(width)
        self.norm_out = ChannelNorm(width, True, 3)
        self.conv_out = Convolution(width, 2 * z_dim, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(self.norm_out(self.mid_block(x), inplace=True))


class UpBlock(nn.Module):
    """The decoder's residual blocks at one size, one more than the encoder's, and the way up unless it is the last."""

    def __init__(self, inputs: int, outputs: int, blocks: int, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(outputs if k else inputs, outputs) for k in range(blocks + 1))
        self.upsamplers = nn.ModuleList([] if last else [Upsample(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        for block in (*self.resnets, *self.upsamplers):
            x = block(x)
        return x


class Decoder(nn.Module):
    """Latents [b, z_dim, y, x] back to pictures, not clamped; each way up halves the channels."""

    def __init__(self, base: int, z_dim: int, mult: tuple[int, ...], blocks: int, channels: int) -> None:
        super().__init__()
        widths = [base * factor for factor in reversed(mult)]
        self.conv_in = Convolution(z_dim, widths[0], 3, 3)
        self.mid_block = MidBlock(widths[0])
        inputs = [widths[0], *(width // 2 for width in widths[:-1])]
        last = len(widths) - 1
        self.up_blocks = nn.ModuleList(
            UpBlock(before, width, blocks, k == last)
            for k, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm_out = ChannelNorm(widths[-1], True, 3)
        self.conv_out = Convolution(widths[-1], channels, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(self.norm_out(x, inplace=True))


class VaeNet(nn.Module):
    """Both networks and the 1x1 convolutions between them and the posterior."""

    def __init__(
        self, base: int, z_dim: int, mult: tuple[int, ...], blocks: int, attn_scales: tuple[float, ...], channels: int
    ) -> None:
        super().__init__()
        self.encoder = Encoder(base, z_dim, mult, blocks, attn_scales, channels)
        self.quant_conv = Convolution(2 * z_dim, 2 * z_dim, 1, 1)
        self.post_quant_conv = Convolution(z_dim, z_dim, 1, 1)
        self.decoder = Decoder(base, z_dim, mult, blocks, channels)

    def encode(self, pictures: Tensor) -> Tensor:
        """Mean and log-variance [b, 2 z_dim, y, x], the latter not clamped."""
        return self.quant_conv(self.encoder(pictures.contiguous(memory_format=torch.channels_last)))

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [b, c, h, w], not clamped."""
        return self.decoder(self.post_quant_conv(latents.contiguous(memory_format=torch.channels_last)))

    def parts(self) -> Iterable[tuple[str, Part]]:
        """Every module that holds tensors itself, by its released name."""
        return ((name, part) for name, part in self.named_modules() if isinstance(part, Part))


def _parameter(value: Tensor) -> nn.Parameter:
    # A copy, since the tensors read are views of the file.
    layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
    return nn.Parameter(value.clone(memory_format=layout), requires_grad=False)
