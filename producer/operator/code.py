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
# Looked for only where some window has steps like black on white: 0.3 ms instead of 20, for half of all photographs.
_WINDOW = 24  # pixels at SIDE
_STEP = 24.0  # levels of 255, the mean over the window; codes printed black on white have 46 and more


class CodeError(ValueError):
    """The package that reads codes is not installed."""


class CodeConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 5
    # Any that can be read is an "abnormal element (watermarks, QR codes, barcodes)" (arXiv 2508.02324, stage S5).
    max: float = Field(default=0.0, ge=0, le=1)

    def operator(self) -> "Code":
        if importlib.util.find_spec("zxingcpp") is None:
            raise CodeError("operators.code needs zxing-cpp, not installed: pip install 'inkstone[curation]'")
        return Code(most=self.max)

    def content(self) -> dict[str, Any]:
        return {"zxing-cpp": importlib.metadata.version("zxing-cpp")}


class Code(Measured):
    """Score: the longer side of the largest QR code or barcode that can be read, as a share of the square root of the
    picture's area, 0 to 1; 0 without one. Read at FINE pixels of the longest side at most, upright or turned. Higher
    means larger. Kept up to `max`.
    """

    name = "code"
    fine = True

    def measure(self, picture: Picture) -> float:
        if not _has_steps(picture.grey):
            return 0.0
        # Here, since only workers that look for codes need it.
        import zxingcpp

        seen = cv2.cvtColor(picture.finest, cv2.COLOR_RGB2GRAY)
        found = zxingcpp.read_barcodes(seen, formats=zxingcpp.barcode_formats_from_str(_FORMATS), try_downscale=False)
        return min(1.0, max((_longer_side(one.position) for one in found), default=0.0) / math.sqrt(seen.size))


def _has_steps(grey: np.ndarray) -> bool:
    if min(grey.shape) < 2:
        return False
    across, down = cv2.absdiff(grey[:-1, 1:], grey[:-1, :-1]), cv2.absdiff(grey[1:, :-1], grey[:-1, :-1])
    return float(cv2.boxFilter(cv2.max(across, down), cv2.CV_32F, (_WINDOW, _WINDOW)).max()) >= _STEP


def _longer_side(position: Any) -> float:
    corners = [position.top_left, position.top_right, position.bottom_right, position.bottom_left]
    return max(math.dist((a.x, a.y), (b.x, b.y)) for a, b in zip(corners, [*corners[1:], corners[0]], strict=True))
