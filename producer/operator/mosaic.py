"""Mosaic: pictures with a part made unrecognisable by large square pixels."""

from typing import ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field

from producer.operator.judgement import OptIn, Picture
from producer.operator.measured import Measured

_WINDOW, _STRIDE = 64, 32
_CELLS = 5.0, 24.0  # pixels, the sizes of cell looked for
_NOISE = 2.0  # levels of 255: what compression leaves inside of a cell
_FLAT = 0.1  # levels: added to the mean step, so that a window without steps has no grid


class MosaicConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 5
    # Photographs have less than 0.54, pavements and machines most, but for one with 0.62. Where cells hide something in
    # 160 x 160 pixels or more, 97 of 100 have more.
    max: float = Field(default=0.55, ge=0, le=1)

    def operator(self) -> "Mosaic":
        return Mosaic(most=self.max)


class Mosaic(Measured):
    """Score: how much of luma's steps in a window of 64 x 64 pixels lies on one regular grid, along the axis where that
    is less, beyond what evenly spread steps would; of the window where this is highest. 0 to 1, at SIDE pixels of the
    longest side at most, for cells of 5 to 24 pixels. Higher means a more perfect mosaic. Kept up to `max`.
    """

    name = "mosaic"

    def measure(self, picture: Picture) -> float:
        grey = picture.grey
        if min(grey.shape) <= _WINDOW:
            return 0.0
        across = _profiles(np.subtract(grey[:, 1:], grey[:, :-1], dtype=np.int16))
        down = _profiles(np.subtract(grey[1:], grey[:-1], dtype=np.int16).T)
        rows, columns = min(len(across), down.shape[1]), min(across.shape[1], len(down))
        return float(np.minimum(_on_grid(across[:rows, :columns]), _on_grid(down[:columns, :rows]).T).max())


def _profiles(steps: np.ndarray) -> np.ndarray:
    """For each window [i, j] of `steps` [y, x], the mean visible step at every x: float32 [i, j, _WINDOW]."""
    visible = np.maximum(np.abs(steps).astype(np.float32) - _NOISE, 0)
    bands = visible[: len(visible) // _STRIDE * _STRIDE].reshape(-1, _STRIDE, visible.shape[1]).mean(axis=1)
    tall = sliding_window_view(bands, _WINDOW // _STRIDE, axis=0).mean(axis=-1)
    return sliding_window_view(tall, _WINDOW, axis=1)[:, ::_STRIDE]


def _on_grid(profiles: np.ndarray) -> np.ndarray:
    """The share of each profile on the best of all grids, 0 where it is what an even profile has."""
    whole = profiles.sum(axis=-1) + _WINDOW * _FLAT
    share = profiles.reshape(-1, _WINDOW) @ _GRIDS / whole.reshape(-1, 1)
    return np.maximum(((share - _EVEN) / (1 - _EVEN)).max(axis=1), 0).reshape(whole.shape)


def _grids() -> np.ndarray:
    """A column of 0 and 1 for every size and place of a grid; two pixels a line, as scaling blurs it."""
    columns = []
    for cell in np.arange(_CELLS[0], _CELLS[1] + 0.1, 0.5):
        for first in np.arange(cell):
            lines = np.arange(first, _WINDOW - 1, cell).astype(int)
            column = np.zeros(_WINDOW, np.float32)
            column[lines] = column[lines + 1] = 1
            columns.append(column)
    return np.stack(columns, axis=1)


_GRIDS = _grids()
_EVEN = _GRIDS.mean(axis=0)
