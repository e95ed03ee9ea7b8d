"""A small AutoencoderKLQwenImage whose weights are set by hand: a blurry but true image codec, without training.

Each 8x8 block is kept as 16 numbers, its luma as a polynomial of third order and its two chromas of first order, on
orthonormal bases, so that a distance in latents is a distance in pixels. A polynomial on a block is one on each quarter
of it: three stages of 2x2, stride-2 convolutions give the 16 numbers exactly. The way back cannot be exact (nearest
upsampling leaves a 3x3 convolution no way to tell left from right but by its neighbours), so each of its three stages
is the least-squares answer on some photographs, in closed form.

Residual branches end in zeros. The last norm and SiLU would bend the signal: a large constant channel makes the norm a
fixed scale, and silu(a) - silu(-a) = a, so every number travels with its negative.
"""

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage

Array = np.ndarray

CHANNELS = 16
# Channels at full resolution; four times as many at the bottom must hold 16 numbers, their negatives and a constant.
BASE = 12
CONSTANT = 256.0
LOGVAR = -12.0
# Hidden values are pixels' over this, small beside CONSTANT.
SCALE = 8.0
# Luma and two chromas, orthonormal: each row a colour axis over r, g, b.
COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
# Highest total order of the polynomials kept of each colour axis: 10 + 3 + 3 = 16 of them.
ORDERS = (3, 1, 1)
# Weights are rounded to this, which hides the last digits where machines differ.
STEP = 2.0**-14


def basis(side: int) -> Array:
    """Orthonormal rows [m, 3 * side * side]: the polynomials on a block of `side` pixels."""
    points = np.linspace(-1, 1, side)
    vectors, triangle = np.linalg.qr(np.stack([points**order for order in range(min(side, 4))], axis=1))
    lines = (vectors * np.sign(np.diag(triangle))).T
    return np.stack(
        [
            np.einsum("k,y,x->kyx", colour, lines[down], lines[total - down]).ravel()
            for colour, order in zip(COLOURS, ORDERS, strict=True)
            for total in range(order + 1)
            for down in range(total + 1)
            if max(down, total - down) < len(lines)
        ]
    )


def coefficients(picture: Array, side: int) -> Array:
    """The polynomials' coefficients [h / side, w / side, m] of `picture` [h, w, 3]."""
    h, w, _ = picture.shape
    blocks = picture.reshape(h // side, side, w // side, side, 3).transpose(0, 2, 4, 1, 3)
    return blocks.reshape(h // side, w // side, -1) @ basis(side).T


def mix() -> Array:
    """An orthonormal matrix [16, 16] of equal magnitudes, so that every latent channel carries every coefficient."""
    hadamard: Array = np.ones((1, 1))
    while len(hadamard) < CHANNELS:
        hadamard = np.kron(hadamard, [[1, 1], [1, -1]])
    return hadamard / np.sqrt(CHANNELS)


def build(pictures: list[Array]) -> Any:
    """The AutoencoderKLQwenImage, its latent statistics and its decoder fitted to `pictures`.

    They are [h, w, 3] within [-1, 1], with sides that are multiples of 8.
    """
    latents = np.concatenate([coefficients(picture, 8).reshape(-1, CHANNELS) for picture in pictures]) @ mix().T
    net: Any = AutoencoderKLQwenImage(
        base_dim=BASE,
        z_dim=CHANNELS,
        num_res_blocks=1,
        latents_mean=[round(float(value), 4) for value in latents.mean(0)],
        latents_std=[round(float(value), 4) for value in latents.std(0)],
    )
    state = {name: np.zeros(tuple(tensor.shape)) for name, tensor in net.state_dict().items()}
    for name in state:
        if name.endswith("gamma"):
            state[name] += 1
        if "conv_shortcut.weight" in name:
            _lay(state[name], np.eye(*state[name].shape[:2]), -1, 0, 0)
    for name in ("quant_conv.weight", "post_quant_conv.weight"):
        _lay(state[name], np.eye(len(state[name])), -1, 0, 0)
    _set_encoder(state)
    _set_decoder(state, pictures)
    rounded = {name: np.round(value / STEP) * STEP for name, value in state.items()}
    net.load_state_dict({name: torch.from_numpy(value).float() for name, value in rounded.items()})
    return net


def _set_encoder(state: dict[str, Array]) -> None:
    _lay(state["encoder.conv_in.weight"], COLOURS / SCALE, -1, 1, 1)
    # With one residual block a level, down_blocks are: block, halving, block, halving, block, halving, block.
    for index, (side, finer) in zip((1, 3, 5), ((2, 1), (4, 2), (8, 4)), strict=True):
        weight = state[f"encoder.down_blocks.{index}.resample.1.weight"]
        taps = _refine(side, finer)
        for dy in range(2):
            for dx in range(2):
                _lay(weight, taps[dy, dx], dy, dx)
                if side == 8:
                    _lay(weight, -taps[dy, dx], dy, dx, row=CHANNELS)
    state["encoder.down_blocks.5.resample.1.bias"][2 * CHANNELS] = CONSTANT
    _set_gain(state["encoder.norm_out.gamma"], CHANNELS)
    out = SCALE * mix()
    _lay(state["encoder.conv_out.weight"], np.concatenate([out, -out], axis=1), -1, 1, 1)
    state["encoder.conv_out.bias"][CHANNELS:] = LOGVAR


def _set_decoder(state: dict[str, Array], pictures: list[Array]) -> None:
    _lay(state["decoder.conv_in.weight"], mix().T / SCALE, -1, 1, 1)
    state["decoder.conv_in.bias"][CHANNELS] = 1
    for level, weights in enumerate(_subdivisions(pictures)):
        weight = state[f"decoder.up_blocks.{level}.upsamplers.0.resample.1.weight"]
        bias = state[f"decoder.up_blocks.{level}.upsamplers.0.resample.1.bias"]
        outputs = weights.shape[2]
        for dy in range(3):
            for dx in range(3):
                _lay(weight, weights[3 * dy + dx].T, dy, dx)
                if level == 2:
                    _lay(weight, -weights[3 * dy + dx].T, dy, dx, row=outputs)
        bias[2 * outputs if level == 2 else outputs] = CONSTANT if level == 2 else 1
    _set_gain(state["decoder.norm_out.gamma"], 3)
    out = SCALE * COLOURS.T
    _lay(state["decoder.conv_out.weight"], np.concatenate([out, -out], axis=1), -1, 1, 1)


def _lay(weight: Array, matrix: Array, *tap: int, row: int = 0) -> None:
    """Put `matrix` [outputs, inputs] at one tap of a convolution's weight, from output `row` on."""
    where: tuple[int | slice, ...] = (slice(row, row + matrix.shape[0]), slice(matrix.shape[1]), *tap)
    weight[where] = matrix


def _set_gain(gamma: Array, pairs: int) -> None:
    """Undo the norm, whose length is CONSTANT all but exactly, for `pairs` numbers and their negatives."""
    gamma[:] = 0
    gamma[: 2 * pairs] = CONSTANT / np.sqrt(len(gamma))


def _refine(side: int, finer: int) -> Array:
    """[2, 2, m, n]: the `m` coefficients of a block from the `n` of each of its quarters, `finer` pixels a side."""
    coarse = basis(side).reshape(-1, 3, 2, finer, 2, finer).transpose(2, 4, 0, 1, 3, 5)
    fine = COLOURS if finer == 1 else basis(finer)
    return coarse.reshape(2, 2, len(basis(side)), -1) @ fine.T


def _subdivisions(pictures: list[Array]) -> list[Array]:
    """Three stages [9, n + 1, m]: a block's quarters from the 3x3 around them after nearest upsampling, and from 1.

    Each stage is fitted to what the stages before it give, hidden values in and out.
    """
    stages = []
    now = [coefficients(picture, 8) / SCALE for picture in pictures]
    for side in (4, 2, 1):
        seen = [_around(values) for values in now]
        wanted = [(picture @ COLOURS.T if side == 1 else coefficients(picture, side)) / SCALE for picture in pictures]
        inputs = np.concatenate([values.reshape(-1, values.shape[-1]) for values in seen])
        targets = np.concatenate([values.reshape(-1, values.shape[-1]) for values in wanted])
        ridge = 1e-6 * len(inputs) * np.eye(inputs.shape[1])
        answer = np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets)
        now = [values @ answer for values in seen]
        stages.append(answer.reshape(9, -1, targets.shape[1]))
    return stages


def _around(values: Array) -> Array:
    """[2 h, 2 w, 9 (n + 1)]: what a 3x3 convolution sees of `values` [h, w, n] and a constant, upsampled by two."""
    h, w, _ = values.shape
    wide = np.concatenate([values, np.ones((h, w, 1))], axis=2).repeat(2, axis=0).repeat(2, axis=1)
    padded = np.pad(wide, ((1, 1), (1, 1), (0, 0)))
    return np.concatenate([padded[dy : dy + 2 * h, dx : dx + 2 * w] for dy in range(3) for dx in range(3)], axis=2)
