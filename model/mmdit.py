"""The MMDiT of Qwen-Image: double-stream blocks that meet in attention, on packed tokens of mixed samples.

Equal to diffusers' QwenImageTransformer2DModel on the same weights, whose names it keeps, so that released checkpoints
load as they are. The layers come from a provider (provider.py): this file holds the mathematics alone.
"""

from collections.abc import Iterator

from pydantic import BaseModel, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from model.block import Adaln, Block, adaln, chunks, idle, owners_of, pad, padded_rows
from model.embed import TimeTextEmbed
from model.fused import modulate
from model.layout import Layout
from model.norm import TokenNorm
from model.provider import Plain, Provider


class MMDiTConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """Sizes, named as in the released config.json; the defaults are the released 20B model's."""

    patch_size: int = 2
    in_channels: int = 64  # latent channels * patch_size squared
    out_channels: int = 16
    num_layers: int = 60
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 3584  # width of the prompt encoder
    axes_dims_rope: tuple[int, int, int] = (16, 56, 56)
    blocks_per_gather: int = 10  # blocks whose modulation is gathered in one collective

    @model_validator(mode="after")
    def _fits(self) -> "MMDiTConfig":
        if sum(self.axes_dims_rope) != self.attention_head_dim or any(dims % 2 for dims in self.axes_dims_rope):
            raise ValueError(
                f"model.axes_dims_rope: {self.axes_dims_rope} must be even and sum to "
                f"attention_head_dim {self.attention_head_dim}; they sum to {sum(self.axes_dims_rope)}"
            )
        if self.in_channels != self.out_channels * self.patch_size**2:
            raise ValueError(
                f"model.in_channels: {self.in_channels} must be out_channels {self.out_channels} * patch_size "
                f"{self.patch_size} squared, {self.out_channels * self.patch_size**2}"
            )
        return self

    @property
    def width(self) -> int:
        return self.attention_head_dim * self.num_attention_heads


class OutputNorm(nn.Module):
    """The last modulation's linear, under its released name."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear


class MMDiT(nn.Module):
    """The transformer: noisy latent tokens, prompt tokens and sigma to velocity.

    Never-trained weights of the last block have requires_grad False.
    """

    def __init__(self, config: MMDiTConfig, provider: Provider | None = None) -> None:
        super().__init__()
        self.config, self.provider = config, provider or Plain()
        width, layers = config.width, self.provider
        self.img_in = layers.whole(config.in_channels, width)
        self.txt_norm = layers.token_norm(TokenNorm(config.joint_attention_dim))
        self.txt_in = layers.whole(config.joint_attention_dim, width)
        self.time_text_embed = TimeTextEmbed(width)
        self.blocks = [
            Block(width, config.attention_head_dim, layers, last=n == config.num_layers - 1)
            for n in range(config.num_layers)
        ]
        self.transformer_blocks = nn.ModuleList(self.blocks)
        self.norm_out = OutputNorm(layers.modulation(width, 2 * width))
        self.proj_out = layers.whole(width, config.in_channels)
        for parameter in idle(self.blocks[-1]):
            parameter.requires_grad_(False)
        # Shared with rows that train: the four last row groups shape a text output that nothing reads.
        self.blocks[-1].txt_mod[1].weight.idle_rows = (2 * width, 6 * width)  # type: ignore[union-attr]

    def named_parameters(self, *args: object, **kwargs: object) -> Iterator[tuple[str, nn.Parameter]]:
        """In the order of first use: as torch's, but modulation, which runs ahead of all blocks, before them.

        Gradient buckets are filled from the end of this order and parameters gathered from its start; with modulation
        among the blocks the first bucket would leave when most of the backward is over.
        """
        named = list(super().named_parameters(*args, **kwargs))  # type: ignore[arg-type]
        yield from sorted(named, key=lambda item: _in_blocks(item[0]))

    def forward(self, image: Tensor, text: Tensor, sigma: Tensor, layout: Layout) -> Tensor:
        """Velocity [targets, 4 c] of packed latents `image` [i, 4 c], given `text` [t, e] and `sigma` [b] in [0, 1].

        Code convention: velocity is noise minus data and sigma 1 is pure noise (reference: diffusers
        transformer_qwenimage.py; the report's time runs the other way).
        """
        share, provider = self.provider.shard, self.provider
        owners = owners_of(layout, self.provider)
        x = self.img_in(share(pad(image, padded_rows(image.shape[0], provider))))
        y = self.txt_in(self.txt_norm(share(pad(text, padded_rows(text.shape[0], provider)))))
        condition = F.silu(self.time_text_embed(sigma, x.dtype))
        mods, (scale, shift) = self._modulation(condition)
        for block, mod in zip(self.blocks, mods, strict=True):
            x, y = block(x, y, mod, owners, layout)
        out = self.proj_out(modulate(x, scale, shift, owners.image))
        out = self.provider.unshard(out)[: image.shape[0]]
        return out if layout.target_rows is None else out[layout.target_rows]

    def _modulation(self, condition: Tensor) -> tuple[list[tuple[Adaln, Adaln]], tuple[Tensor, Tensor]]:
        """Every block's modulation and the output's scale and shift, gathered a group of blocks at a time."""
        mods: list[tuple[Adaln, Adaln]] = []
        last: list[Tensor] = []
        for group in chunks(len(self.blocks), self.config.blocks_per_gather):
            blocks = [self.blocks[n] for n in group]
            parts = [mod[1](condition) for block in blocks for mod in (block.img_mod, block.txt_mod)]
            if group.stop == len(self.blocks):
                parts.append(self.norm_out.linear(condition))
            whole = self.provider.gather(parts)
            mods += [(adaln(whole[2 * n]), adaln(whole[2 * n + 1])) for n in range(len(blocks))]
            last = whole[2 * len(blocks) :]
        scale, shift = last[0].chunk(2, dim=-1)
        return mods, (scale, shift)


def _in_blocks(name: str) -> bool:
    """True for weights that are first used in the blocks or after them."""
    return name.startswith("proj_out") or (name.startswith("transformer_blocks") and "_mod." not in name)
