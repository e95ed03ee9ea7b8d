"""Joint attention of packed samples: each sample's text and image tokens see each other, and nothing else.

Scale 1 / sqrt(k), no mask within a sample: it has no padding. A sample's text comes before its image, as in diffusers
transformer_qwenimage.py (QwenDoubleStreamAttnProcessor2_0). The backends are equal; they differ in what runs where.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

from model.config import Backend
from model.layout import Layout
from model.provider import Packed

# The flash kernel's bounds (torch 2.13).
_VARLEN_DTYPES = (torch.float16, torch.bfloat16)
_VARLEN_HEAD = 256


class AttentionError(ValueError):
    """The attention asked for does not run on these tensors."""


class Heads(NamedTuple):
    """Queries, keys and values [n, h, k] of one stream; no queries where nobody reads their answer."""

    q: Tensor | None
    k: Tensor
    v: Tensor


# From the text's and the image's heads to their outputs [t, h * k] (no rows without text queries) and [i, h * k].
Attend = Callable[[Heads, Heads, Layout], tuple[Tensor, Tensor]]


def backend(name: Backend, packed: Packed | None = None) -> Attend:
    """The attention called `name`; `packed` is the kernel that auto takes before any of ours."""
    if name == "auto" and packed is not None:
        return partial(attend_packed, kernel=packed)
    return {"auto": attend_auto, "samples": attend_samples, "masked": attend_masked, "varlen": attend_varlen}[name]


def attend_auto(text: Heads, image: Heads, layout: Layout) -> tuple[Tensor, Tensor]:
    """The fastest backend that runs on the heads' device and dtype."""
    return (attend_samples if _varlen_lacks(image.k) else attend_varlen)(text, image, layout)


def attend_samples(text: Heads, image: Heads, layout: Layout) -> tuple[Tensor, Tensor]:
    """A sample at a time."""
    queries = layout.text_lengths if text.q is not None else [0] * len(layout.text_lengths)
    outputs = []
    for (text_q, text_k, text_v), (image_q, image_k, image_v) in zip(
        _samples(text, layout.text_lengths), _samples(image, layout.image_lengths), strict=True
    ):
        assert image_q is not None
        q = image_q if text_q is None else torch.cat([text_q, image_q])
        q, k, v = (
            part.transpose(0, 1)[None] for part in (q, torch.cat([text_k, image_k]), torch.cat([text_v, image_v]))
        )
        outputs.append(F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1))
    parts = [out.split([length, out.shape[0] - length]) for out, length in zip(outputs, queries, strict=True)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def attend_masked(text: Heads, image: Heads, layout: Layout) -> tuple[Tensor, Tensor]:
    """All samples at once under a block-diagonal mask [q, t + i], both streams in their packed order.

    A masked value counts nothing if it is finite; NaN goes through any mask.
    """
    assert image.q is not None
    q, queries = image.q, layout.image_owner
    keys = torch.cat([layout.text_owner, layout.image_owner])
    if text.q is not None:
        q, queries = torch.cat([text.q, image.q]), keys
    q, k, v = (part.transpose(0, 1)[None] for part in (q, torch.cat([text.k, image.k]), torch.cat([text.v, image.v])))
    mask = queries[:, None] == keys[None]
    out = F.scaled_dot_product_attention(q, k, v, mask)[0].transpose(0, 1).flatten(1)
    text_out, image_out = out.split([out.shape[0] - image.q.shape[0], image.q.shape[0]])
    return text_out, image_out


def attend_varlen(text: Heads, image: Heads, layout: Layout) -> tuple[Tensor, Tensor]:
    """All samples in one flash kernel that is told where each one starts; CUDA, 16-bit.

    Raises AttentionError where that kernel does not run.
    """
    lacks = _varlen_lacks(image.k)
    if lacks:
        raise AttentionError(f"model.attention: varlen {lacks}; use auto, which then takes samples")
    return attend_packed(text, image, layout)


def attend_packed(text: Heads, image: Heads, layout: Layout, kernel: Packed | None = None) -> tuple[Tensor, Tensor]:
    """Every sample's rows brought together (text, then image), one call of `kernel` (torch's varlen), and back."""
    assert image.q is not None
    lengths = layout.text_lengths, layout.image_lengths
    joint = [t + i for t, i in zip(*lengths, strict=True)]
    k, v = _woven(text.k, image.k, lengths), _woven(text.v, image.v, lengths)
    if text.q is None:
        q, starts, longest = image.q.contiguous(), layout.image_starts, max(layout.image_lengths)
    else:
        q, starts, longest = _woven(text.q, image.q, lengths), layout.joint_starts, max(joint)
    out = (kernel or varlen_attn)(q, k, v, starts, layout.joint_starts, longest, max(joint))
    assert isinstance(out, Tensor)
    out = out.flatten(1)
    if text.q is None:
        return out[:0], out
    parts = out.split([*chain(*zip(*lengths, strict=True))])
    return torch.cat(parts[::2]), torch.cat(parts[1::2])


def _samples(stream: Heads, lengths: Sequence[int]) -> list[tuple[Tensor | None, Tensor, Tensor]]:
    sizes = list(lengths)
    queries = [None] * len(sizes) if stream.q is None else stream.q.split(sizes)
    return list(zip(queries, stream.k.split(sizes), stream.v.split(sizes), strict=True))


def _woven(text: Tensor, image: Tensor, lengths: tuple[Sequence[int], Sequence[int]]) -> Tensor:
    """Rows of both streams in the order of samples, each one's text before its image."""
    pairs = zip(text.split(list(lengths[0])), image.split(list(lengths[1])), strict=True)
    return torch.cat([*chain(*pairs)])


def _varlen_lacks(heads: Tensor) -> str:
    """Why the packed kernel does not run on `heads` [n, h, k]; empty where it does."""
    if heads.device.type != "cuda":
        return f"runs on CUDA, the tensors are on {heads.device.type}"
    if heads.dtype not in _VARLEN_DTYPES:
        return f"takes float16 or bfloat16, the tensors are {heads.dtype}"
    if heads.shape[-1] % 8 or heads.shape[-1] > _VARLEN_HEAD:
        return f"takes heads of a multiple of 8 up to {_VARLEN_HEAD}, these have {heads.shape[-1]}"
    return ""
