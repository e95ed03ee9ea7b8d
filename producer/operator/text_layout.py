"""How lines of text lie in a picture: what they cover and how large their letters are."""

from collections.abc import Sequence

import cv2
import numpy as np

from producer.operator.reading import Line

# Boxes of the detector are about so much higher than an em: 0.9 to 1.4 for Latin and Chinese of 16 to 80 pixels, by
# font; 0.7 for words without a single long stroke.
_BOX_EMS = 1.1
_GRAIN = 256  # cells of the longer side that are counted as covered or not
# Of the picture's shorter side: what is framed higher than this and cannot be read is no line, but stars or leaves.
# Lines in scripts that the reader does not know cannot be read either, but in a page of them each is low.
_UNREAD = 1 / 8


def covered(lines: Sequence[Line], width: int, height: int) -> float:
    """Share, 0 to 1, of a picture of `width` x `height` that its lines cover; where two overlap, it counts once.

    High frames in which nothing can be read are no lines.
    """
    ems, _ = letters(lines, width, height)
    lines = [line for line, em in zip(lines, ems, strict=True) if line.text or em <= _UNREAD * min(width, height)]
    scale = _GRAIN / max(width, height)
    cells = np.zeros((max(1, round(height * scale)), max(1, round(width * scale))), np.uint8)
    for line in lines:
        # Whole cells, of which fillPoly takes the border as well.
        corners = np.asarray(line.corners) * (cells.shape[1], cells.shape[0]) - 0.5
        cv2.fillPoly(cells, [corners.round().astype(np.int32)], 1)
    return float(cells.mean())


def letters(lines: Sequence[Line], width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each line the height of an em and how many square letters it has room for; in pixels of a picture of `width` x
    `height`. Of upright columns, too: an em is the shorter side.
    """
    corners = np.asarray([line.corners for line in lines], np.float64).reshape(-1, 4, 2) * (width, height)
    sides = np.linalg.norm(np.roll(corners, -1, axis=1) - corners, axis=-1)
    first, second = (sides[:, 0] + sides[:, 2]) / 2, (sides[:, 1] + sides[:, 3]) / 2
    across, along = np.minimum(first, second), np.maximum(first, second)
    return across / _BOX_EMS, np.maximum(1.0, along / np.maximum(across, 1e-9))
