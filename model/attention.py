"""Joint attention of packed samples: each sample's text and image tokens see each other, and nothing else."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Heads(NamedTuple):
    """Queries, keys and values [n, h, k] of one stream; no queries where nobody reads their answer."""

    q: Tensor | None
    k: Tensor
    v: Tensor


def attend(
    text: Heads, image: Heads, text_lengths: Sequence[int], image_lengths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Attention a sample at a time: outputs [t, h * k] (no rows without text queries) and [i, h * k].

    Scale 1 / sqrt(k), no mask: a sample has no padding. The text comes first, as in diffusers
    transformer_qwenimage.py (QwenDoubleStreamAttnProcessor2_0).
    """
    queries = text_lengths if text.q is not None else [0] * len(text_lengths)
    outputs = []
    for (text_q, text_k, text_v), (image_q, image_k, image_v) in zip(
        _samples(text, text_lengths), _samples(image, image_lengths), strict=True
    ):
        assert image_q is not None
        q = image_q if text_q is None else torch.cat([text_q, image_q])
        q, k, v = (
            part.transpose(0, 1)[None] for part in (q, torch.cat([text_k, image_k]), torch.cat([text_v, image_v]))
        )
        outputs.append(F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1))
    parts = [out.split([length, out.shape[0] - length]) for out, length in zip(outputs, queries, strict=True)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _samples(stream: Heads, lengths: Sequence[int]) -> list[tuple[Tensor | None, Tensor, Tensor]]:
    sizes = list(lengths)
    queries = [None] * len(sizes) if stream.q is None else stream.q.split(sizes)
    return list(zip(queries, stream.k.split(sizes), stream.v.split(sizes), strict=True))
