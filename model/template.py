"""How prompts and pictures are put to Qwen2.5-VL: the released pipelines' templates, sizes and rotary positions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from PIL import Image
from torch import Tensor

# The released code's words (pipeline_qwenimage.py, pipeline_qwenimage_edit.py, pipeline_qwenimage_edit_plus.py); the
# report prints others.
T2I_PREFIX = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
EDIT_PREFIX = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
PICTURE_TOKEN = "<|image_pad|>"

# Pixels of a reference as the VAE sees it.
VAE_AREA = 1024 * 1024
_SIDE = 32  # resized pictures have sides that are multiples of this


class TemplateError(ValueError):
    """A prompt's pictures do not fit its template."""


@dataclass(frozen=True)
class Template:
    """One task's words. The states of `prefix` are dropped: 34 tokens for text to image, 64 for edits."""

    prefix: str
    picture: str = ""  # ahead of the prompt for a picture, or for each where {k} counts them from 1
    area: int = 0  # pixels that the language model sees of a picture; 0: as it comes

    def text(self, prompt: str, pads: Sequence[int] = ()) -> str:
        """The whole text for `prompt` and pictures of `pads` tokens each."""
        many = "{k}" in self.picture
        if bool(self.picture) != bool(pads) or (len(pads) > 1 and not many):
            wanted = ("at least one" if many else "one") if self.picture else "none"
            raise TemplateError(f"prompt {prompt[:60]!r} has {len(pads)} pictures: its template takes {wanted}")
        shown = [self.picture.format(k=k).replace(PICTURE_TOKEN, PICTURE_TOKEN * n) for k, n in enumerate(pads, 1)]
        return "".join([self.prefix, *shown, prompt, SUFFIX])


T2I = Template(T2I_PREFIX)
EDIT = Template(EDIT_PREFIX, f"<|vision_start|>{PICTURE_TOKEN}<|vision_end|>", VAE_AREA)
EDIT_PLUS = Template(EDIT_PREFIX, f"Picture {{k}}: <|vision_start|>{PICTURE_TOKEN}<|vision_end|>", 384 * 384)
# The same for pictures that are `fitted` to its area already: doing it again may change their ratio.
EDIT_FITTED = Template(EDIT_PREFIX, EDIT_PLUS.picture)


def fitted(picture: Image.Image, area: int) -> Image.Image:
    """`picture` (RGB) at about `area` pixels in its own ratio, sides rounded to multiples of 32 (Lanczos).

    calculate_dimensions in pipeline_qwenimage_edit_plus.py.
    """
    ratio = picture.width / picture.height
    exact = math.sqrt(area * ratio)
    width, height = round(exact / _SIDE) * _SIDE, round(exact / ratio / _SIDE) * _SIDE
    if not (width and height):
        raise TemplateError(f"a picture of {picture.width}x{picture.height} is too narrow to show at {area} pixels")
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def grid_positions(shown: Sequence[bool], grids: Sequence[tuple[int, int]], start: int) -> Tensor:
    """Rotary positions [3, t] (time, row, column) of tokens, the first at `start`, of which `shown` are pictures'.

    The k-th run of those is a picture of `grids[k]` (h, w) tokens; what follows it stands after its longer side
    (Qwen2_5_VLModel.get_rope_index).
    """
    parts, at, left = [], start, iter(grids)
    for picture, run in groupby(shown):
        if picture:
            height, width = next(left)
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            parts.append(at + torch.stack([torch.zeros_like(y), y, x]).flatten(1))
            at += max(height, width)
        else:
            length = sum(1 for _ in run)
            parts.append(at + torch.arange(length).expand(3, -1))
            at += length
    return torch.cat(parts, dim=1)
