"""Code: pictures with QR codes or barcodes in them."""

import importlib.metadata
import importlib.util
import math
from typing import Any, ClassVar

import cv2
import numpy as np
from pydantic import Field

from producer.operator.judgement import OptIn, Picture
from producer.operator.measured import Measured

# Codes that check themselves well enough to be found nowhere else: none in the photographs here. Of the others some
# have a check digit at most.
_FORMATS = "QRCode,MicroQRCode,RMQRCode,Aztec,DataMatrix,PDF417,Code128,Code39,Code93,EAN13,EAN8,UPCA"
# At FINE pixels codes are looked for only around windows that have steps like black on white, since that takes 20 ms of
# a whole picture; half of all photographs have none.
_WINDOW = 24  # pixels at SIDE
_STEP = 24.0  # levels of 255, the mean over the window; codes printed black on white have 46 and more
_QUIET = 32  # pixels at SIDE around them: codes have a margin, and parts with fewer steps
# Of codes so large that a window shows few steps this side shows all: 2 ms of any picture.
_LARGE = 256


class CodeError(ValueError):
    """The package that reads codes is not installed."""


class CodeConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 5
    # Any that can be read is an "abnormal element (watermarks, QR codes, barcodes)" (arXiv 2508.02324, stage S5).
    max: float = Field(default=0.0, ge=0)

    def operator(self) -> "Code":
        if importlib.util.find_spec("zxingcpp") is None:
            raise CodeError("operators.code needs zxing-cpp, not installed: pip install 'inkstone[curation]'")
        return Code(most=self.max)

    def content(self) -> dict[str, Any]:
        return {"zxing-cpp": importlib.metadata.version("zxing-cpp")}


class Code(Measured):
    """Score: the longer side of the largest QR code or barcode that can be read, as a share of the square root of the
    picture's area, 0 to 1.8; 0 without one. Read at FINE pixels of the longest side at most, upright or turned. Higher
    means larger. Kept up to `max`.
    """

    name = "code"
    fine = True

    def measure(self, picture: Picture) -> float:
        grey = picture.grey
        reduced = min(1.0, _LARGE / max(grey.shape))
        size = max(1, round(grey.shape[1] * reduced)), max(1, round(grey.shape[0] * reduced))
        if largest := _largest_code(cv2.resize(grey, size, interpolation=cv2.INTER_AREA)):
            return largest / math.sqrt(size[0] * size[1])
        if (part := _with_steps(picture)) is None:
            return 0.0
        fine = picture.finest
        return _largest_code(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY)) / math.sqrt(fine.shape[0] * fine.shape[1])


def _largest_code(grey: np.ndarray) -> float:
    """The longer side in pixels of the largest code that can be read in `grey`."""
    # Here, since only workers that look for codes need it.
    import zxingcpp

    found = zxingcpp.read_barcodes(grey, formats=zxingcpp.barcode_formats_from_str(_FORMATS), try_downscale=False)
    return max((_longer_side(one.position) for one in found), default=0.0)


def _with_steps(picture: Picture) -> np.ndarray | None:
    """The part of the finest view around all windows with steps as codes have them, None if there is none."""
    grey = picture.grey
    if min(grey.shape) < 2:
        return None
    across, down = cv2.absdiff(grey[:-1, 1:], grey[:-1, :-1]), cv2.absdiff(grey[1:, :-1], grey[:-1, :-1])
    steps = cv2.boxFilter(cv2.max(across, down), cv2.CV_32F, (_WINDOW, _WINDOW)) >= _STEP
    rows, columns = (np.flatnonzero(steps.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return None
    fine, reach = picture.finest, _QUIET + _WINDOW // 2
    by = fine.shape[0] / grey.shape[0]
    top, left = (max(0, math.floor((ends[0] - reach) * by)) for ends in (rows, columns))
    bottom, right = (math.ceil((ends[-1] + reach) * by) for ends in (rows, columns))
    return np.ascontiguousarray(fine[top:bottom, left:right])


def _longer_side(position: Any) -> float:
    corners = [position.top_left, position.top_right, position.bottom_right, position.bottom_left]
    return max(math.dist((a.x, a.y), (b.x, b.y)) for a, b in zip(corners, [*corners[1:], corners[0]], strict=True))
