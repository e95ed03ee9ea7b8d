"""MSRoPE: rotary positions on three axes (frame, height, width); text continues the diagonal of the grid.

Follows diffusers transformer_qwenimage.py (QwenEmbedRope, apply_rotary_emb_qwen), not the report's figure 8: an axis of
size n runs from -(n - n // 2) to n // 2 - 1, and text token j stands at m + j on all axes, m the largest half side.
Layered weights (use_layer3d_rope) follow QwenEmbedLayer3DRope: the condition is frame -1, and m at least its number of
layers. Angles are computed, not looked up: positions beyond the reference's table of 4096 work here and fail there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# (frame, height, width) of one picture in patches; the frames are those of `numbered`.
Grid = tuple[int, int, int]

THETA = 10000.0


def numbered(sizes: Sequence[tuple[int, int]], *, layered: bool = False) -> list[Grid]:
    """Grids of one sample's pictures from their sizes (height, width): the target is 0, references are 1, 2, ...

    With layered weights the layers are 0, 1, ... and the last picture, the condition, is -1, even where it is alone.
    """
    frames = list(range(len(sizes)))
    if layered:
        frames[-1:] = [-1]
    return [(frame, height, width) for frame, (height, width) in zip(frames, sizes, strict=True)]


def picture_positions(grid: Grid) -> Tensor:
    """Positions [h * w, 3] of a picture's tokens, row by row."""
    frame, height, width = grid
    rows = torch.arange(height) - (height - height // 2)
    columns = torch.arange(width) - (width - width // 2)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.full_like(y, frame), y, x], dim=-1).flatten(0, 1)


def text_positions(grids: Sequence[Grid], length: int, *, layered: bool = False) -> Tensor:
    """Positions [length, 3] of a prompt's tokens beside the pictures `grids`, references and condition included."""
    start = max(max(height // 2, width // 2) for _, height, width in grids)
    if layered:
        start = max(start, len(grids) - 1)
    return (start + torch.arange(length))[:, None].expand(-1, 3)


def angles(positions: Tensor, axes: Sequence[int]) -> Tensor:
    """Rotation angles [n, sum(axes) / 2] in fp32 of `positions` [n, 3]; `axes` are the head's dims for each axis."""
    parts = []
    for axis, dims in enumerate(axes):
        frequency = 1.0 / torch.pow(THETA, torch.arange(0, dims, 2, dtype=torch.float32).div(dims))
        parts.append(torch.outer(positions[:, axis].float(), frequency))
    return torch.cat(parts, dim=-1)
