"""Parameters and FLOPs of the MMDiT, from its sizes alone.

A matrix product of m x k by k x n counts 2 m n k FLOPs; everything else is left out, as in published utilisations.
Counted is what the model computes: the last block's text has no queries, no output projection and no MLP.
"""

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from model.config import MMDiTConfig, RecomputeConfig

Count = TypeVar("Count", int, np.ndarray)

# Sinusoids of the timestep embedding.
_FREQUENCIES = 256

# Rows of the additional condition's table, where there is one.
_CLASSES = 2


def parameters(sizes: "MMDiTConfig") -> int:
    """Parameters of the model, its never-trained ones too: 20,430,401,088 for the released sizes."""
    width, head = sizes.width, sizes.attention_head_dim
    attention = 8 * _linear(width, width) + 4 * head
    mlp = _linear(width, 4 * width) + _linear(4 * width, width)
    block = 2 * _linear(width, 6 * width) + attention + 2 * mlp
    time = _linear(_FREQUENCIES, width) + _linear(width, width) + _CLASSES * width * sizes.use_additional_t_cond
    text_in = sizes.joint_attention_dim + _linear(sizes.joint_attention_dim, width)
    ends = _linear(sizes.in_channels, width) + _linear(width, 2 * width) + _linear(width, sizes.in_channels)
    return sizes.num_layers * block + time + text_in + ends


def _linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def forward_flops(sizes: "MMDiTConfig", image: Count, text: Count) -> Count:
    """FLOPs of one sample's forward with `image` tokens (references among them) and `text` tokens.

    Samples of a packed unit do not attend to each other: a unit's FLOPs are the sum over its samples.
    """
    width, layers = sizes.width, sizes.num_layers
    block = 12 * width**2  # q, k, v, out and the MLP, a token
    # zero_cond_t embeds a second noise level and modulates the image stream by both.
    levels = 1 + sizes.zero_cond_t
    sample = layers * 6 * (1 + levels) * width**2 + levels * (_FREQUENCIES * width + width**2) + 2 * width**2
    image_token = layers * block + 2 * sizes.in_channels * width
    text_token = (layers - 1) * block + 2 * width**2 + sizes.joint_attention_dim * width
    keys = image + text
    pairs = (layers - 1) * keys * keys + image * keys
    return 2 * (sample + image * image_token + text * text_token + 2 * width * pairs)


def training_flops(sizes: "MMDiTConfig", image: Count, text: Count) -> Count:
    """FLOPs of one sample's forward and backward: the backward has two products for each of the forward's."""
    return 3 * forward_flops(sizes, image, text)


def executed_flops(sizes: "MMDiTConfig", recompute: "RecomputeConfig", image: Count, text: Count) -> Count:
    """What the hardware does for `training_flops`: with the products that `recompute` computes a second time."""
    width, again = sizes.width, 0 * image
    for block, parts in enumerate(recompute.of(sizes.num_layers)):
        last = block == sizes.num_layers - 1
        if "block" in parts:
            image_linears, text_linears = 12, 2 if last else 12
        else:
            attention, mlp = 3 * ("attention" in parts), 4 * ("mlp" in parts)  # of q, k, v, and of the MLP's first
            image_linears, text_linears = attention + mlp, attention * 2 // 3 if last else attention + mlp
        again = again + (image_linears * image + text_linears * text) * width**2
        if parts & {"core", "attention", "block"}:
            again = again + 2 * width * (image if last else image + text) * (image + text)
    return training_flops(sizes, image, text) + 2 * again


def per_token_and_pair(sizes: "MMDiTConfig") -> tuple[int, int]:
    """(a, b) such that a sample of s tokens, image and text, trains in about a s + b s^2 FLOPs.

    As if every block were whole and samples cost nothing by themselves: within 1 % at the released sizes.
    """
    return 3 * 24 * sizes.num_layers * sizes.width**2, 3 * 4 * sizes.num_layers * sizes.width


def utilisation(flops: float, seconds: float, peak: float) -> float:
    """Model FLOPs utilisation: the share of `peak` FLOP/s that `flops` in `seconds` are (of one device, or of all)."""
    return flops / seconds / peak
