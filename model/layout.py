"""How the samples of a unit lie in the packed streams: lengths, owners of rows, rotary angles.

Image tokens of all samples form one stream, text tokens another; nothing is padded but tail rows up to a multiple that
the provider asks for. A sample may hold several pictures: the first is the target, the rest are references; with
layered weights all but the last are the target (the composite and its layers), the last is the condition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from model.rope import Grid, angles, numbered, picture_positions, text_positions
from model.transfer import sent

# Prompt tokens a sample without references may have: the pipelines' bound (pipeline_qwenimage.py, check_inputs). An
# edit's prompt also holds its pictures' tokens, 1369 of a single reference, and has none. Neither have positions: what
# lies beyond the reference's rotary table of 4096 is computed, not refused.
MAX_TEXT = 1024


class LayoutError(ValueError):
    """Sizes, lengths or values of a unit do not fit together, or not the model."""


@dataclass(frozen=True, eq=False)
class Layout:
    """One unit's layout. Index and angle tensors are on one device; lengths are plain numbers."""

    image_lengths: tuple[int, ...]
    text_lengths: tuple[int, ...]
    target_lengths: tuple[int, ...]
    image_owner: Tensor  # [i] sample of each image row
    text_owner: Tensor  # [t]
    image_level: Tensor  # [i] row of [sigma; 0] for zero_cond_t: s in the target of sample s, b + s in its references
    target_rows: Tensor | None  # rows of the targets, None where all are
    image_cos: Tensor  # [i, k / 2]
    image_sin: Tensor
    text_cos: Tensor  # [t, k / 2]
    text_sin: Tensor
    image_starts: Tensor  # [b + 1] int32: where each sample's image rows start, and the end
    joint_starts: Tensor  # [b + 1] int32: the same for rows in the order of samples, each one's text then its image
    layered: bool
    keys: tuple[str, ...]  # of the samples, for messages; empty where they have none

    @classmethod
    def build(
        cls,
        pictures: Sequence[Sequence[Grid]],
        text_lengths: Sequence[int],
        axes: Sequence[int],
        *,
        layered: bool = False,
        keys: Sequence[str] = (),
    ) -> "Layout":
        """The layout of samples whose pictures (in patches, numbered as by rope.py) are `pictures[sample]`.

        `axes` is axes_dims_rope and `layered` use_layer3d_rope of the weights. Raises LayoutError, which names the
        sample, by its key where there are `keys`.
        """
        _check(pictures, text_lengths, keys, layered)
        areas = [[height * width for _, height, width in grids] for grids in pictures]
        targets = [max(1, len(grids) - 1) if layered else 1 for grids in pictures]
        image_lengths = tuple(sum(area) for area in areas)
        target_lengths = tuple(sum(area[:count]) for area, count in zip(areas, targets, strict=True))
        joint_lengths = [i + t for i, t in zip(image_lengths, text_lengths, strict=True)]
        owner, target = _owners(image_lengths), _leading(image_lengths, target_lengths)
        image = angles(torch.cat([picture_positions(grid) for grids in pictures for grid in grids]), axes)
        beside = [text_positions(g, n, layered=layered) for g, n in zip(pictures, text_lengths, strict=True)]
        text = angles(torch.cat(beside), axes)
        return cls(
            image_lengths,
            tuple(text_lengths),
            target_lengths,
            owner,
            _owners(text_lengths),
            torch.where(target, owner, owner + len(pictures)),
            None if target_lengths == image_lengths else target.nonzero()[:, 0],
            image.cos(),
            image.sin(),
            text.cos(),
            text.sin(),
            _starts(image_lengths),
            _starts(joint_lengths),
            layered,
            tuple(keys),
        )

    def to(self, device: torch.device) -> "Layout":
        """The same layout with its tensors on `device`."""
        values: list[Any] = [sent(v, device) if isinstance(v, Tensor) else v for v in vars(self).values()]
        return Layout(*values)

    def check(self, image: Tensor, text: Tensor, sigma: Tensor) -> None:
        """Raise LayoutError unless the packed `image` [i, c], `text` [t, e] and `sigma` [b] are of this layout."""
        for stream, rows, lengths in (("image", image, self.image_lengths), ("text", text, self.text_lengths)):
            if rows.dim() != 2 or rows.shape[0] != sum(lengths):
                raise LayoutError(
                    f"{stream} tokens have shape {tuple(rows.shape)}, the layout's {len(lengths)} samples have "
                    f"{list(lengths)}, together {sum(lengths)} rows: pack them in the layout's order"
                )
        if sigma.shape != (len(self.image_lengths),):
            raise LayoutError(f"sigma has shape {tuple(sigma.shape)}, the layout {len(self.image_lengths)} samples")

    def check_finite(self, image: Tensor, text: Tensor) -> None:
        """Raise LayoutError with the first sample whose rows hold NaN or infinity.

        It reads every value, so it belongs where the tokens are made, on the host, and not in the forward.
        """
        for stream, rows, lengths in (("image", image, self.image_lengths), ("text", text, self.text_lengths)):
            bad = ~rows.isfinite().all(-1)
            if bad.any():
                counts = [int(part.sum()) for part in bad.split(list(lengths))]
                sample = next(number for number, count in enumerate(counts) if count)
                raise LayoutError(
                    f"{_name(sample, self.keys)}: {counts[sample]} of its {lengths[sample]} {stream} tokens hold NaN "
                    f"or infinity; encode it again or drop it"
                )


def _check(pictures: Sequence[Sequence[Grid]], text_lengths: Sequence[int], keys: Sequence[str], layered: bool) -> None:
    if len(pictures) != len(text_lengths) or not pictures:
        raise LayoutError(f"{len(pictures)} samples with pictures, {len(text_lengths)} with text: give both for each")
    if keys and len(keys) != len(pictures):
        raise LayoutError(f"{len(keys)} keys for {len(pictures)} samples: give one for each, or none")
    for sample, (grids, length) in enumerate(zip(pictures, text_lengths, strict=True)):
        name = _name(sample, keys)
        if not grids or min(min(h, w) for _, h, w in grids) < 1 or length < 1:
            raise LayoutError(f"{name}: pictures {list(grids)} and {length} text tokens; each needs at least 1")
        if length > MAX_TEXT and len(grids) == 1:
            raise LayoutError(f"{name}: a prompt of {length} tokens; at most {MAX_TEXT} are allowed, so shorten it")
        frames = [frame for frame, _, _ in grids]
        wanted = [frame for frame, _, _ in numbered([(h, w) for _, h, w in grids], layered=layered)]
        if frames != wanted:
            kind = "layers and then the condition" if layered else "the target and then its references"
            raise LayoutError(f"{name}: its pictures have frames {frames}; {kind} have {wanted}")


def _name(sample: int, keys: Sequence[str]) -> str:
    return f"sample {keys[sample]!r}" if keys else f"sample {sample}"


def _owners(lengths: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def _leading(lengths: Sequence[int], leading: Sequence[int]) -> Tensor:
    """True for the first `leading[s]` of the `lengths[s]` rows of each sample s."""
    return torch.cat([torch.arange(length) < n for length, n in zip(lengths, leading, strict=True)])


def _starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
