"""A picture too large for one pass in overlapping tiles, blended linearly (AutoencoderKLQwenImage.tiled_encode)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """When and how pictures are cut, in pixels; tiles approximate the whole, since their borders see less.

    Memory then follows the tile, not the picture. `above` is the largest side still done whole.
    """

    above: int
    tile: int = 256
    stride: int = 192  # from tile to tile; the overlap of tile - stride is blended

    def wants(self, height: int, width: int) -> bool:
        return max(height, width) > self.above


def in_tiles(x: Tensor, run: Callable[[Tensor], Tensor], cut: tuple[int, int], paste: tuple[int, int]) -> Tensor:
    """`run` over tiles of `x` [b, c, h, w], blended into one float32 tensor on the CPU.

    `cut` is tile and stride in x, `paste` in what `run` gives. Each tile is blended with the finished tile above, then
    with the one on the left, over the overlap or over the whole of a tile that is narrower than it.
    """
    (tile, stride), (side, step) = cut, paste
    overlap = side - step
    height, width = (-(-size * step // stride) for size in x.shape[2:])
    out: Tensor | None = None
    above: list[Tensor] = []
    for row, i in enumerate(range(0, x.shape[2], stride)):
        left: Tensor | None = None
        strips = []
        for column, j in enumerate(range(0, x.shape[3], stride)):
            piece = run(x[:, :, i : i + tile, j : j + tile]).float()
            if row:
                _blend(above[column], piece, overlap, 2)
            if left is not None:
                _blend(left, piece, overlap, 3)
            left = _end(piece, overlap, 3)
            # Copies, since a view would keep its whole tile.
            strips.append(_end(piece, overlap, 2).clone())
            if out is None:
                out = torch.empty(*piece.shape[:2], height, width)
            kept = piece[:, :, :step, :step]
            out[:, :, row * step :, column * step :][:, :, : kept.shape[2], : kept.shape[3]] = kept
        above = strips
    assert out is not None
    return out


def _end(piece: Tensor, extent: int, dim: int) -> Tensor:
    extent = min(extent, piece.shape[dim])
    return piece.narrow(dim, piece.shape[dim] - extent, extent)


def _blend(before: Tensor, piece: Tensor, overlap: int, dim: int) -> None:
    """Fade, in place, from the end of `before` to the start of `piece`."""
    extent = min(before.shape[dim], piece.shape[dim], overlap)
    if not extent:
        return
    fade = torch.arange(extent, device=piece.device) / extent
    fade = fade[:, None] if dim == 2 else fade
    start = piece.narrow(dim, 0, extent)
    start.copy_(_end(before, extent, dim) * (1 - fade) + start * fade)
