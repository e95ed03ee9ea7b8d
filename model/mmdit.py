"""The MMDiT of Qwen-Image: double-stream blocks that meet in attention, on packed tokens of mixed samples.

Equal to diffusers' QwenImageTransformer2DModel on the same weights, whose names it keeps, so that released checkpoints
load as they are. The layers come from a provider (provider.py): this file holds the mathematics alone.

Variants are flags of the weights, and samples of any task of a variant share a unit. Text to image: one picture. Edit:
the target, then references of their own sizes. zero_cond_t: references are modulated as at sigma 0. Layered
(use_layer3d_rope, use_additional_t_cond): layers, then the condition, with a class a sample.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import backend
from model.block import Adaln, Block, adaln, chunks, idle, owners_of, pad, padded_rows
from model.config import MMDiTConfig, RecomputeConfig
from model.embed import CLASSES, TimeTextEmbed
from model.fused import modulate
from model.layout import Layout, LayoutError
from model.norm import TokenNorm
from model.provider import Plain, Provider


class OutputNorm(nn.Module):
    """The last modulation's linear, under its released name."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear


class MMDiT(nn.Module):
    """The transformer: noisy latent tokens, prompt tokens and sigma to velocity.

    Never-trained weights of the last block have requires_grad False. `recompute` is for training with gradients.
    """

    def __init__(
        self, config: MMDiTConfig, provider: Provider | None = None, recompute: RecomputeConfig | None = None
    ) -> None:
        super().__init__()
        self.config, self.provider = config, provider or Plain()
        width, layers = config.width, self.provider
        self.img_in = layers.whole(config.in_channels, width)
        self.txt_norm = layers.token_norm(TokenNorm(config.joint_attention_dim))
        self.txt_in = layers.whole(config.joint_attention_dim, width)
        self.time_text_embed = TimeTextEmbed(width, classes=config.use_additional_t_cond)
        packed = layers.packed_attention(config.num_attention_heads, config.attention_head_dim)
        attend = backend(config.attention, packed)
        self.blocks = [
            Block(width, config.attention_head_dim, layers, attend, redo, last=n == config.num_layers - 1)
            for n, redo in enumerate((recompute or RecomputeConfig()).of(config.num_layers))
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

    def forward(
        self, image: Tensor, text: Tensor, sigma: Tensor, layout: Layout, additional_t_cond: Tensor | None = None
    ) -> Tensor:
        """Velocity [targets, 4 c] of packed latents `image` [i, 4 c], given `text` [t, e] and `sigma` [b] in [0, 1].

        `additional_t_cond` [b] is each sample's class, 0 or 1, where the weights have use_additional_t_cond. Code
        convention: velocity is noise minus data and sigma 1 is pure noise (reference: diffusers
        transformer_qwenimage.py; the report's time runs the other way). Raises LayoutError before any layer runs.
        """
        self._check(image, text, sigma, layout, additional_t_cond)
        share, provider, zero = self.provider.shard, self.provider, self.config.zero_cond_t
        owners = owners_of(layout, provider, zero_cond=zero)
        x = self.img_in(share(pad(image, padded_rows(image.shape[0], provider))))
        y = self.txt_in(self.txt_norm(share(pad(text, padded_rows(text.shape[0], provider)))))
        if zero:
            sigma = torch.cat([sigma, torch.zeros_like(sigma)])
            additional_t_cond = None if additional_t_cond is None else additional_t_cond.repeat(2)
        levels = F.silu(self.time_text_embed(sigma, x.dtype, additional_t_cond))
        mods, (scale, shift) = self._modulation(levels, levels[: len(layout.image_lengths)])
        for block, mod in zip(self.blocks, mods, strict=True):
            x, y = block(x, y, mod, owners, layout)
        out = self.proj_out(modulate(x, scale, shift, owners.output))
        out = self.provider.unshard(out)[: image.shape[0]]
        return out if layout.target_rows is None else out[layout.target_rows]

    def _check(self, image: Tensor, text: Tensor, sigma: Tensor, layout: Layout, kind: Tensor | None) -> None:
        layout.check(image, text, sigma)
        config, samples = self.config, len(layout.image_lengths)
        for stream, rows, width in (
            ("image", image, config.in_channels),
            ("text", text, config.joint_attention_dim),
            ("angle", layout.image_cos, config.attention_head_dim // 2),
        ):
            if rows.shape[1] != width:
                raise LayoutError(f"{stream} rows are {rows.shape[1]} wide, the model's are {width}")
        if layout.layered != config.use_layer3d_rope:
            raise LayoutError(
                f"the layout was built with layered {layout.layered}, the weights have use_layer3d_rope "
                f"{config.use_layer3d_rope}: build it with that"
            )
        if (kind is not None) != config.use_additional_t_cond:
            raise LayoutError(
                f"additional_t_cond is {'absent' if kind is None else 'given'}, the weights have use_additional_t_cond "
                f"{config.use_additional_t_cond}: {'give a class for each sample' if kind is None else 'leave it out'}"
            )
        if kind is not None and (kind.shape != (samples,) or kind.dtype not in (torch.int32, torch.int64)):
            raise LayoutError(
                f"additional_t_cond has shape {tuple(kind.shape)} of {kind.dtype}, the layout {samples} samples: "
                "give each an int64"
            )
        # On a device the values cannot be read without waiting for it.
        if kind is not None and kind.device.type == "cpu" and not ((kind >= 0) & (kind < CLASSES)).all():
            raise LayoutError(f"additional_t_cond is {kind.tolist()}: classes are 0 to {CLASSES - 1}")

    def _modulation(self, levels: Tensor, condition: Tensor) -> tuple[list[tuple[Adaln, Adaln]], tuple[Tensor, Tensor]]:
        """Every block's modulation and the output's scale and shift, gathered a group of blocks at a time.

        The image stream is modulated by `levels` [b or 2 b, d], text and output by `condition` [b, d].
        """
        mods: list[tuple[Adaln, Adaln]] = []
        last: list[Tensor] = []
        for group in chunks(len(self.blocks), self.config.blocks_per_gather):
            # In the order of use, in which overlapped gathers fill the weights.
            pairs = [(self.blocks[n].img_mod[1](levels), self.blocks[n].txt_mod[1](condition)) for n in group]
            images, texts = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            if group.stop == len(self.blocks):
                texts.append(self.norm_out.linear(condition))
            images, texts = self._gathered(images, texts)
            last = texts[len(pairs) :]
            mods += [(adaln(i), adaln(t)) for i, t in zip(images, texts[: len(pairs)], strict=True)]
        scale, shift = last[0].chunk(2, dim=-1)
        return mods, (scale, shift)

    def _gathered(self, images: Sequence[Tensor], texts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Both gathered, in one collective where they have the same rows."""
        if images[0].shape[0] != texts[0].shape[0]:
            return self.provider.gather(images), self.provider.gather(texts)
        whole = self.provider.gather([*images, *texts])
        return whole[: len(images)], whole[len(images) :]


def _in_blocks(name: str) -> bool:
    """True for weights that are first used in the blocks or after them."""
    return name.startswith("proj_out") or (name.startswith("transformer_blocks") and "_mod." not in name)
