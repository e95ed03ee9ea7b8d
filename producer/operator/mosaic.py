"""Mosaic: pictures with a part made unrecognisable by large square pixels."""

import itertools
from typing import ClassVar

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field

from producer.operator.judgement import OptIn, Picture
from producer.operator.measured import Measured

_WINDOW, _STRIDE = 64, 16
_CELLS = np.geomspace(5, 24, 20)  # pixels, the sizes of cell looked for
# Levels of 255: one is what compression leaves inside of a cell. From 7 on all steps count alike, so that a strong edge
# does not outweigh what a photograph has beside it and a mosaic has not.
_NOISE, _STRONG = 1, 7
_FLAT = 0.05  # levels: added to the mean step, so that a window without steps has no grid


class MosaicConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 5
    # Photographs have up to 0.2; of pictures chosen to be hard, 99 of 100 less than 0.28, chessboards 0.23. Where cells
    # hide something in 160 x 160 pixels or more, 99 of 100 have more than 0.37.
    max: float = Field(default=0.25, ge=0, le=1)

    def operator(self) -> "Mosaic":
        return Mosaic(most=self.max)


class Mosaic(Measured):
    """Score: how much of luma's steps in a window of 64 x 64 pixels lies on one regular grid of squares, along the axis
    where that is less, beyond what evenly spread steps would; on average over four windows, 16 pixels apart on either
    axis, where this is highest. 0 to 1, at SIDE pixels of the longest side at most, for cells of 5 to 24 pixels. Higher
    means a more perfect mosaic. Kept up to `max`.
    """

    name = "mosaic"
    version = 2

    def measure(self, picture: Picture) -> float:
        grey = picture.grey
        if min(grey.shape) <= _WINDOW:
            return 0.0
        across, down = _on_grids(grey), _on_grids(cv2.transpose(grey)).transpose(0, 2, 1)
        rows, columns = min(across.shape[1], down.shape[1]), min(across.shape[2], down.shape[2])
        squares = np.minimum(across[:, :rows, :columns], down[:, :rows, :columns])
        if rows > 1:
            squares = (squares[:, 1:] + squares[:, :-1]) / 2
        if columns > 1:
            squares = (squares[:, :, 1:] + squares[:, :, :-1]) / 2
        return float(squares.max())


def _on_grids(grey: np.ndarray) -> np.ndarray:
    """The share of each window's steps across that lies on the best grid of each size, 0 where it is what even steps
    have: float32 [size, i, j].
    """
    steps = np.clip(cv2.absdiff(grey[:, 1:], grey[:, :-1]), _NOISE, _STRONG)
    # 16 steps of at most 7 fit into a byte.
    bands = steps[: len(steps) // _STRIDE * _STRIDE].reshape(-1, _STRIDE, steps.shape[1]).sum(axis=1, dtype=np.uint8)
    tall = len(bands) + 1 - _WINDOW // _STRIDE
    profiles = sum(bands[first : first + tall].astype(np.float32) for first in range(_WINDOW // _STRIDE)) / _WINDOW
    # Two pixels a line, as scaling blurs it.
    pairs = profiles[:, 1:] + profiles[:, :-1] - 2 * _NOISE
    windows = sliding_window_view(pairs, _WINDOW - 1, axis=1)[:, ::_STRIDE]
    lines = _GRIDS @ windows.reshape(-1, _WINDOW - 1).T
    share = np.stack([lines[size].max(axis=0) for size in _SIZES]) / (lines[-1] + _WINDOW * _FLAT)
    return np.maximum((share - _EVEN) / (1 - _EVEN), 0).reshape(-1, *windows.shape[:2])


def _grids() -> list[np.ndarray]:
    """For every size a row of 0 and 1 for every place of a grid, 1 where a line begins."""
    found = []
    for cell in _CELLS:
        rows = np.zeros((int(np.ceil(cell)), _WINDOW - 1), np.float32)
        for first, row in enumerate(rows):
            row[np.arange(first, _WINDOW - 1, cell).astype(int)] = 1
        found.append(rows)
    return found


_OF_SIZE = _grids()
_ENDS = itertools.accumulate((len(rows) for rows in _OF_SIZE), initial=0)
_SIZES = [slice(*ends) for ends in itertools.pairwise(_ENDS)]
_GRIDS = np.concatenate([*_OF_SIZE, np.full((1, _WINDOW - 1), 0.5, np.float32)])  # and all steps, at the end
_EVEN = np.array([[2 * rows.sum(axis=1).mean() / _WINDOW] for rows in _OF_SIZE], np.float32)
