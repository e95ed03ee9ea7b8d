"""The double-stream block: image and text keep their own weights and meet only in attention.

Names follow diffusers' QwenImageTransformerBlock, so that released checkpoints load as they are.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import Attend, Heads
from model.config import KEEP, Parts
from model.fused import Rows, add_gated, bias_gelu, modulate
from model.layout import Layout
from model.norm import HeadNorm
from model.provider import Provider
from model.recompute import again

# Makes the tokens that a group of columns reads.
Entered = Callable[[], tuple[Tensor, ...]]


class Adaln(NamedTuple):
    """What the timestep says to one stream of one block, [b, d] each, in the order of the released weights' rows.

    With zero_cond_t the image's have 2 b rows: at the samples' sigmas, then at 0.
    """

    shift_attn: Tensor
    scale_attn: Tensor
    gate_attn: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor


class Owners(NamedTuple):
    """The row of the modulations that each of this rank's rows takes, tail rows too: its sample's.

    With zero_cond_t reference rows take that of their sample at sigma 0, but in the output's norm.
    """

    image: Rows
    text: Rows
    output: Rows


def pad(x: Tensor, rows: int) -> Tensor:
    """x with zero rows added at its end until it has `rows`."""
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, rows - x.shape[0])) if rows > x.shape[0] else x


class Attention(nn.Module):
    """Joint attention of both streams; text projections are the `add_` ones."""

    def __init__(self, width: int, head_dim: int, provider: Provider, attend: Attend, *, last: bool) -> None:
        super().__init__()
        self.head_dim, self.attend, self.last = head_dim, attend, last

        def column() -> nn.Module:
            return provider.column(width, width)

        def norm() -> nn.Module:
            return provider.head_norm(HeadNorm(head_dim))

        # In the order of use, in which overlapped gathers fill them.
        self.to_q, self.to_k, self.to_v = column(), column(), column()
        self.add_q_proj, self.add_k_proj, self.add_v_proj = column(), column(), column()
        self.norm_q, self.norm_k, self.norm_added_q, self.norm_added_k = norm(), norm(), norm(), norm()
        self.to_out = nn.ModuleList([provider.row(width, width)])
        self.to_add_out = provider.row(width, width)

    def forward(self, entered: Entered, layout: Layout, redo: Parts) -> tuple[Tensor, Tensor | None]:
        """From the entered tokens of both streams to their updates, this rank's; the last block's text has none."""
        if "attention" in redo:
            return again(True, lambda: self._core(self._project(*entered()), layout), self._out)
        projected = again("norm" in redo, entered, self._project)
        return again("core" in redo, lambda: self._core(projected, layout), self._out)

    def _project(self, image: Tensor, text: Tensor) -> tuple[Heads, Heads]:
        image_heads = Heads(self.to_q(image), self.to_k(image), self.to_v(image))
        text_q = None if self.last else self.add_q_proj(text)
        return image_heads, Heads(text_q, self.add_k_proj(text), self.add_v_proj(text))

    def _core(self, projected: tuple[Heads, Heads], layout: Layout) -> tuple[Tensor, Tensor | None]:
        """Both streams' answers, with the tail rows that the projections had."""
        (image_q, image_k, image_v), (text_q, text_k, text_v) = projected
        i, t = sum(layout.image_lengths), sum(layout.text_lengths)
        image_turn, text_turn = (layout.image_cos, layout.image_sin), (layout.text_cos, layout.text_sin)
        assert image_q is not None
        image_heads = Heads(
            self.norm_q(self._heads(image_q, i), *image_turn),
            self.norm_k(self._heads(image_k, i), *image_turn),
            self._heads(image_v, i),
        )
        text_heads = Heads(
            None if text_q is None else self.norm_added_q(self._heads(text_q, t), *text_turn),
            self.norm_added_k(self._heads(text_k, t), *text_turn),
            self._heads(text_v, t),
        )
        text_out, image_out = self.attend(text_heads, image_heads, layout)
        return pad(image_out, image_k.shape[0]), None if text_q is None else pad(text_out, text_k.shape[0])

    def _heads(self, x: Tensor, rows: int) -> Tensor:
        # Heads are counted from the tensor: a rank that holds a share of the columns sees that share of the heads.
        return x[:rows].unflatten(-1, (-1, self.head_dim))

    def _out(self, image: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.to_out[0](image), None if text is None else self.to_add_out(text)


class GELU(nn.Module):
    """A linear and the tanh-approximated GELU, as one named step of the MLP."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.proj = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(*self.proj(x))

    def activate(self, product: Tensor, bias: Tensor | None) -> Tensor:
        """The GELU of what `proj` gives."""
        return F.gelu(product, approximate="tanh") if bias is None else bias_gelu(product, bias)


class MLP(nn.Module):
    """Linear, GELU, linear; `net.1` is the reference's dropout, kept for the names."""

    def __init__(self, width: int, provider: Provider) -> None:
        super().__init__()
        up, down = GELU(provider.column_and_bias(width, 4 * width)), provider.row(4 * width, width)
        self.net, self._steps = nn.ModuleList([up, nn.Identity(), down]), (up, down)

    def forward(self, entered: Entered, redo: Parts) -> tuple[Tensor, Tensor]:
        """From the entered tokens of a stream to its update, this rank's; with the stream itself, which goes by."""
        up, down = self._steps

        def hidden() -> tuple[Tensor, Tensor]:
            tokens, stream = entered()
            return up(tokens), stream

        if "mlp" in redo:
            return again(True, hidden, lambda x, stream: (down(x), stream))
        (product, bias), stream = again("norm" in redo, entered, lambda tokens, stream: (up.proj(tokens), stream))
        return again("gelu" in redo, lambda: (up.activate(product, bias),), down), stream


class Block(nn.Module):
    """One double-stream block. `img_mod.1` and `txt_mod.1` are run by the MMDiT ahead of the blocks, not here."""

    def __init__(
        self, width: int, head_dim: int, provider: Provider, attend: Attend, redo: Parts = KEEP, *, last: bool
    ) -> None:
        super().__init__()
        self.img_mod = nn.Sequential(nn.SiLU(), provider.modulation(width, 6 * width))
        self.txt_mod = nn.Sequential(nn.SiLU(), provider.modulation(width, 6 * width))
        self.attn = Attention(width, head_dim, provider, attend, last=last)
        self.img_mlp, self.txt_mlp = MLP(width, provider), MLP(width, provider)
        self.enter, self.redo = provider.enter, redo

    def forward(
        self, image: Tensor, text: Tensor, mods: tuple[Adaln, Adaln], owners: Owners, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        """This rank's tokens of both streams through the block."""
        redo = self.redo if self.training else KEEP
        inside = KEEP if "block" in redo else redo
        return again("block" in redo, lambda: self._through(image, text, mods, owners, layout, inside), _both)

    def _through(
        self, image: Tensor, text: Tensor, mods: tuple[Adaln, Adaln], owners: Owners, layout: Layout, redo: Parts
    ) -> tuple[Tensor, Tensor]:
        mod_i, mod_t = mods

        def entered() -> tuple[Tensor, Tensor]:
            return (
                self.enter(modulate(image, mod_i.scale_attn, mod_i.shift_attn, owners.image)),
                self.enter(modulate(text, mod_t.scale_attn, mod_t.shift_attn, owners.text)),
            )

        image_update, text_update = self.attn(entered, layout, redo)
        image_out = self._mlp(self.img_mlp, image, image_update, mod_i, owners.image, redo)
        if text_update is None:
            return image_out, text
        return image_out, self._mlp(self.txt_mlp, text, text_update, mod_t, owners.text, redo)

    def _mlp(self, mlp: nn.Module, x: Tensor, update: Tensor, mod: Adaln, rows: Rows, redo: Parts) -> Tensor:
        """A stream with attention's update, through its MLP."""

        def entered() -> tuple[Tensor, Tensor]:
            # In here, so that who makes the entered tokens again keeps x and the update, kept anyway, and not the sum.
            stream = add_gated(x, mod.gate_attn, update, rows)
            return self.enter(modulate(stream, mod.scale_mlp, mod.shift_mlp, rows)), stream

        second, stream = mlp(entered, redo)
        return add_gated(stream, mod.gate_mlp, second, rows)


def _both(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    return image, text


def adaln(whole: Tensor) -> Adaln:
    """The six parts of a modulation [b, 6 d]."""
    return Adaln(*whole.chunk(6, dim=-1))


def idle(block: Block) -> list[nn.Parameter]:
    """Weights of the last block that nothing reads, since its text output is discarded; they are never trained.

    The four last row groups of `txt_mod.1` are idle too, but share a matrix with rows that train.
    """
    modules = (block.attn.to_add_out, block.attn.add_q_proj, block.attn.norm_added_q, block.txt_mlp)
    return [parameter for module in modules for parameter in module.parameters()]


def padded_rows(count: int, provider: Provider) -> int:
    """`count` rounded up to a multiple of the provider's `tokens`."""
    return -(-count // provider.tokens) * provider.tokens


def owners_of(layout: Layout, provider: Provider, *, zero_cond: bool = False) -> Owners:
    """Owners of this rank's rows; tail rows go to sample 0, whose values they read and never change."""

    def rows(owner: Tensor) -> Rows:
        return Rows.of(provider.shard(pad(owner, padded_rows(owner.shape[0], provider))))

    output = rows(layout.image_owner)
    return Owners(rows(layout.image_level) if zero_cond else output, rows(layout.text_owner), output)


def chunks(items: int, size: int) -> list[range]:
    """Ranges of `size` that cover `items`."""
    return [range(start, min(start + size, items)) for start in range(0, items, size)]
