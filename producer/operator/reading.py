"""What is written in a picture: read once, for every operator that judges text.

rapidocr with PP-OCRv6's weights, which are inside its package: nothing is fetched. Its drawing helpers would fetch a
font and are never called.
"""

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from producer.operator.judgement import FINE, Sample

# Pixels of the longest side at which detection decides whether there is text at all: 0.1 s of a core, a quarter of what
# it takes at FINE. Of single lines of 16 pixels in photographs of 1280 it finds 14 of 18, at 480 pixels 6.
_GATE = 640
_NARROWEST = 16  # pixels: the detector's grid is 32, and a narrower picture is rounded to nothing
# Lines recognised at most, the largest: 0.1 s each. Pages have 40; the rest of a denser one is only known to be there.
_LINES = 64
_SURE = 0.5  # of the recogniser's probability, rapidocr's own bound: below it are grass and gravel
_SHORT, _SURE_SHORT = 4, 0.93  # and of so few characters: wheels are read as 0000, a roof as 鑫 with up to 0.92
# What the recogniser has no letters for, such as Hangul, Cyrillic and Arabic, it leaves empty. The detector's
# probability from which that is text all the same: 0.74 and more for such lines, up to 0.53 for galaxies and coins.
_SURE_FOREIGN = 0.65
_MEMO = "lines"


class ReadingError(ValueError):
    """The package that reads is not installed."""


class Line(NamedTuple):
    """A line of text, `corners` clockwise from its top left as fractions of the picture's width and height."""

    text: str  # "" where it is in a script that the recogniser does not know, or one line too many to be recognised
    score: (
        float  # the recogniser's mean probability of its characters, 0.5 to 1; the detector's of the line without text
    )
    corners: tuple[tuple[float, float], ...]


def require_reader(asks: str) -> None:
    """Raise ReadingError, with the name of what `asks`, where rapidocr or its engine is not installed."""
    missing = [name for name in ("rapidocr", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ReadingError(f"{asks} reads text with {missing[0]}, not installed: pip install 'inkstone[curation]'")


def reader_identity() -> dict[str, str]:
    """What the lines depend on beside the pixels: the package, which holds the weights."""
    return {"rapidocr": importlib.metadata.version("rapidocr")}


def read_samples(samples: Sequence[Sample]) -> list[list[Line] | None]:
    """The lines of each sample's picture, None without one; read once, whichever operators ask."""
    for one in samples:
        if one.picture is not None and _MEMO not in one.memo:
            one.memo[_MEMO] = read(one.picture.finest)
    return [one.memo.get(_MEMO) for one in samples]


def read(image: np.ndarray) -> list[Line]:
    """The lines in `image`, RGB uint8 [y, x, 3], from top to bottom; none where none were read surely.

    Seen reduced to FINE. The same bits for the same picture on one kind of machine: one thread, a line at a time.
    Raises ReadingError.
    """
    if min(image.shape[:2]) < _NARROWEST:
        return []
    seen = _reduced(image, _GATE)
    found = _detect(seen)
    if found and max(image.shape[:2]) > _GATE:
        seen = _reduced(image, FINE)
        found = _detect(seen)
    places = _largest_first([box for box, _ in found])
    lines = [
        _recognise(seen, *one) if place < _LINES else _line("", one[1], one[0], seen)
        for one, place in zip(found, places, strict=True)
    ]
    return [line for line in lines if line]


def _detect(seen: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Each line's corners in pixels, and the detector's probability."""
    found = _engine()(seen, use_det=True, use_rec=False)
    return [] if found.boxes is None else list(zip(found.boxes, found.scores, strict=True))


def _recognise(seen: np.ndarray, box: np.ndarray, detected: float) -> Line | None:
    """The line in `box`, None where it is no text to be sure of."""
    from rapidocr.utils.process_img import get_rotate_crop_image

    found = _engine()(get_rotate_crop_image(seen, box.astype(np.float32)), use_det=False, use_rec=True)
    text, score = (found.txts[0].strip(), float(found.scores[0])) if found.txts else ("", 0.0)
    if not text:
        return _line("", detected, box, seen) if detected >= _SURE_FOREIGN else None
    return _line(text, score, box, seen) if score >= (_SURE if len(text) > _SHORT else _SURE_SHORT) else None


def _line(text: str, score: float, box: np.ndarray, seen: np.ndarray) -> Line:
    height, width = seen.shape[:2]
    return Line(text, float(score), tuple((float(x) / width, float(y) / height) for x, y in box))


def _largest_first(boxes: Sequence[np.ndarray]) -> list[int]:
    """The place of each box in the order of their areas, the largest at 0."""
    areas = [-cv2.contourArea(np.asarray(box, np.float32)) for box in boxes]
    return np.argsort(np.argsort(areas, kind="stable"), kind="stable").tolist()


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
    require_reader("reading")
    # Here, since only workers that read need it.
    import rapidocr

    models = Path(rapidocr.__file__).parent / "models"
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_preprocess_img": False,
            # A line's turn by 180 degrees is a rare thing, and the classifier turns short words that stood upright.
            "Global.use_cls": False,
            # Paths, so that a missing file is an error instead of a download.
            "Det.model_path": str(models / "PP-OCRv6_det_small.onnx"),
            "Rec.model_path": str(models / "PP-OCRv6_rec_small.onnx"),
            # Nothing is enlarged.
            "Det.limit_type": "max",
            "Det.limit_side_len": FINE,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )
