"""What is written in a picture: read once, for every operator that judges text.

rapidocr with PP-OCRv6's weights, which are inside its package: nothing is fetched. Its drawing helpers would fetch a
font and are never called.
"""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

# Pixels of the longest side at which detection decides whether there is text at all: 40 to 70 ms of a core, where
# LARGEST takes 500.
_GATE = 480
# Pixels of the longest side at which text is read at most. Letters that are legible at 1328p are 12 pixels high there.
LARGEST = 1280
_NARROWEST = 16  # pixels: the detector's grid is 32, and a narrower picture is rounded to nothing
_SURE = 0.5  # of the recogniser's probability, rapidocr's own bound: below it are grass, gravel and foreign scripts
_SURE_ALONE = 0.95  # and of one character alone: a handle is read as a C and a roof as a 鑫 with up to 0.92


class ReadingError(RuntimeError):
    """The package that reads is not installed."""


class Line(NamedTuple):
    """A line of text, `corners` clockwise from its top left as fractions of the picture's width and height."""

    text: str
    score: float  # the recogniser's mean probability of its characters, 0.5 to 1
    corners: tuple[tuple[float, float], ...]


def require_reader(asks: str) -> None:
    """Raise ReadingError, with the name of what `asks`, where rapidocr or its engine is not installed."""
    missing = [name for name in ("rapidocr", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ReadingError(f"{asks} reads text with {missing[0]}, not installed; pip install 'inkstone[curation]'")


def read(image: np.ndarray) -> list[Line]:
    """The lines in `image`, RGB uint8 [y, x, 3], from top to bottom; none where none were read surely.

    Seen reduced to LARGEST. The same bits for the same picture on one kind of machine: one thread, nothing else in the
    batch. Raises ReadingError.
    """
    if min(image.shape[:2]) < _NARROWEST:
        return []
    engine = _engine()
    if engine(_reduced(image, _GATE), use_rec=False).boxes is None:
        return []
    seen = _reduced(image, LARGEST)
    found = engine(seen, use_rec=True)
    if found.boxes is None or found.txts is None:
        return []
    height, width = seen.shape[:2]
    corners = np.asarray(found.boxes, np.float64) / (width, height)
    return [
        Line(text, float(score), tuple((float(x), float(y)) for x, y in box))
        for text, score, box in zip(map(str.strip, found.txts), found.scores, corners, strict=True)
        if len(text) > 1 or (text and score >= _SURE_ALONE)
    ]


def _reduced(image: np.ndarray, side: int) -> np.ndarray:
    """`image` as BGR with `side` pixels at most, as the networks were trained."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(_NARROWEST, round(width * scale)), max(_NARROWEST, round(height * scale))
    small = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2BGR)


@functools.cache
def _engine() -> Callable[..., Any]:
    """Once a process: 0.4 s and 200 MB."""
    require_reader("this operator")
    # Here, since only workers that read need it.
    import rapidocr

    models = Path(rapidocr.__file__).parent / "models"
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_preprocess_img": False,
            # A line's turn by 180 degrees is a rare thing, and the classifier turns short words that stood upright.
            "Global.use_cls": False,
            "Global.text_score": _SURE,
            # Paths, so that a missing file is an error instead of a download.
            "Det.model_path": str(models / "PP-OCRv6_det_small.onnx"),
            "Rec.model_path": str(models / "PP-OCRv6_rec_small.onnx"),
            # Nothing is enlarged.
            "Det.limit_type": "max",
            "Det.limit_side_len": LARGEST,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )
