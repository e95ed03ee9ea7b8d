"""How the samples of a unit lie in the packed streams: lengths, owners of rows, rotary angles.

Image tokens of all samples form one stream, text tokens another; nothing is padded but tail rows up to a multiple that
the provider asks for. A sample may hold several pictures: the first is the target, the rest are references.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.rope import Grid, angles, picture_positions, text_positions


class LayoutError(ValueError):
    """Sizes or lengths of a unit do not fit together."""


@dataclass(frozen=True, eq=False)
class Layout:
    """One unit's layout. Index and angle tensors are on one device; lengths are plain numbers."""

    image_lengths: tuple[int, ...]
    text_lengths: tuple[int, ...]
    target_lengths: tuple[int, ...]
    image_owner: Tensor  # [i] sample of each image row
    text_owner: Tensor  # [t]
    target_rows: Tensor | None  # rows of the targets, None where all are
    image_cos: Tensor  # [i, k / 2]
    image_sin: Tensor
    text_cos: Tensor  # [t, k / 2]
    text_sin: Tensor

    @classmethod
    def build(cls, pictures: Sequence[Sequence[Grid]], text_lengths: Sequence[int], axes: Sequence[int]) -> "Layout":
        """The layout of samples whose pictures (in patches) are `pictures[sample]`; `axes` is axes_dims_rope."""
        if len(pictures) != len(text_lengths) or not pictures:
            raise LayoutError(
                f"{len(pictures)} samples with pictures, {len(text_lengths)} with text: give both for each"
            )
        for sample, (grids, length) in enumerate(zip(pictures, text_lengths, strict=True)):
            if not grids or min(min(h, w) for _, h, w in grids) < 1 or length < 1:
                raise LayoutError(
                    f"sample {sample}: pictures {list(grids)} and {length} text tokens; each needs at least 1"
                )
        image_lengths = tuple(sum(h * w for _, h, w in grids) for grids in pictures)
        target_lengths = tuple(grids[0][1] * grids[0][2] for grids in pictures)
        image = angles(torch.cat([picture_positions(grid) for grids in pictures for grid in grids]), axes)
        text = angles(torch.cat([text_positions(g, n) for g, n in zip(pictures, text_lengths, strict=True)]), axes)
        return cls(
            image_lengths,
            tuple(text_lengths),
            target_lengths,
            _owners(image_lengths),
            _owners(text_lengths),
            None if target_lengths == image_lengths else _leading(image_lengths, target_lengths),
            image.cos(),
            image.sin(),
            text.cos(),
            text.sin(),
        )

    def to(self, device: torch.device) -> "Layout":
        """The same layout with its tensors on `device`."""
        values: list[Any] = [v.to(device) if isinstance(v, Tensor) else v for v in vars(self).values()]
        return Layout(*values)


def _owners(lengths: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def _leading(lengths: Sequence[int], leading: Sequence[int]) -> Tensor:
    starts = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    return torch.cat([start + torch.arange(n) for start, n in zip(starts.tolist(), leading, strict=True)])
