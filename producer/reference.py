"""Reference pictures of edits: the sizes that the encoders see them at, as the edit pipelines do.

A reference keeps its own ratio: the VAE sees it at one area, the language model at another (calculate_dimensions in
diffusers' pipeline_qwenimage_edit_plus.py).
"""

import numpy as np

# Of the longer side over the shorter one; at most the image processor's 200 once sizes are rounded.
NARROWEST = 100
# Pixels that the language model sees of a reference.
SEEN_AREA = 384 * 384

_SIDE = 32  # sides are multiples of this
_PATCH = 28  # pixels a side of what becomes one token of the language model


def fitted(height: np.ndarray, width: np.ndarray, area: int) -> tuple[np.ndarray, np.ndarray]:
    """Height and width at about `area` pixels in the picture's own ratio, sides multiples of 32: int64.

    By operations that every machine rounds alike, since the plan's order follows from them.
    """
    ratio = np.asarray(width, np.float64) / np.maximum(height, 1)
    across = np.sqrt(area * ratio)
    down = across / np.maximum(ratio, 1e-9)
    sides = (np.maximum(1, np.round(side / _SIDE)).astype(np.int64) * _SIDE for side in (down, across))
    return next(sides), next(sides)


def tokens(height: np.ndarray, width: np.ndarray, area: int) -> np.ndarray:
    """What a reference adds to its sample, shown to the VAE at `area` pixels: its image tokens and those in the prompt.

    The words around it are not counted.
    """
    down, across = fitted(height, width, area)
    return (down // 16) * (across // 16) + seen_tokens(height, width)


def seen_tokens(height: np.ndarray, width: np.ndarray) -> np.ndarray:
    """What the language model sees a reference as: int64."""
    down, across = fitted(height, width, SEEN_AREA)
    return (np.round(down / _PATCH) * np.round(across / _PATCH)).astype(np.int64)
