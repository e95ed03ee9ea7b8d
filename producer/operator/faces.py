"""Faces of a picture: found once for every operator that looks at them, by a detector of the user's choice.

No package brings one that may be shipped with ours, so its path is a setting: YuNet as ONNX, which OpenCV runs, or a
cascade of local binary patterns as XML, which scikit-image runs (its own lbpcascade_frontalface_opencv.xml finds
upright frontal faces).
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from producer.digest import hash_file
from producer.operator.judgement import Sample

# Pixels at SIDE of the shorter side of the smallest face looked for. Less than that shows nobody at 256p.
_SMALLEST = 48
_SURE = 0.7  # YuNet's score, 0 to 1; OpenCV's own example asks for 0.9, which hidden faces do not reach


class FacesError(ValueError):
    """A detector's path is missing, or no detector that can be read."""


class Face(NamedTuple):
    """A face's box as shares of the picture's width and height, within 0 to 1."""

    left: float
    top: float
    right: float
    bottom: float

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """Its part of `pixels` [y, x, ...], one pixel at least."""
        height, width = pixels.shape[:2]
        top, left = min(int(self.top * height), height - 1), min(int(self.left * width), width - 1)
        return pixels[top : max(top + 1, round(self.bottom * height)), left : max(left + 1, round(self.right * width))]


Box = tuple[float, float, float, float]  # left, top, width and height in pixels
Detector = Callable[[np.ndarray], list[Box]]


def no_detector(operator: str, model: Path | None) -> str:
    """Why `operator` is off, "" where it has a detector."""
    return "" if model else f"no face detector: set operators.{operator}.model to a .onnx (YuNet) or .xml (LBP cascade)"


def check_detector(setting: str, model: Path) -> None:
    """Raise FacesError, naming `setting`, unless a detector can be read from `model`."""
    try:
        _detector(model, hash_file(model))
    except OSError as error:
        raise FacesError(f"{setting}: {model} cannot be read ({error.strerror}); give the file of a detector") from None
    except FacesError as error:
        raise FacesError(f"{setting}: {error}") from None


def find_faces(samples: Sequence[Sample], model: Path) -> list[list[Face] | None]:
    """The faces of each sample's picture, the largest first, None without a picture; seen at SIDE pixels at most."""
    key = f"faces {model}"
    for one in samples:
        if one.picture is not None and key not in one.memo:
            one.memo[key] = _find(one.picture.pixels, model)
    return [one.memo.get(key) for one in samples]


def _find(pixels: np.ndarray, model: Path) -> list[Face]:
    height, width = pixels.shape[:2]
    if min(height, width) < _SMALLEST:
        return []
    boxes = [box for box in _detector(model, hash_file(model))(pixels) if min(box[2:]) >= _SMALLEST]
    boxes.sort(key=lambda box: (-box[2] * box[3], box))
    edges = [(x / width, y / height, (x + w) / width, (y + h) / height) for x, y, w, h in boxes]
    return [Face(*(min(1.0, max(0.0, float(edge))) for edge in one)) for one in edges]


@functools.lru_cache(maxsize=4)
def _detector(model: Path, content: str) -> Detector:
    """The detector at `model`, opened once a process for each `content`."""
    openers = {".onnx": _yunet, ".xml": _cascade}
    if model.suffix not in openers:
        raise FacesError(f"{model} is neither .onnx (YuNet) nor .xml (LBP cascade)")
    return openers[model.suffix](model)


def _yunet(model: Path) -> Detector:
    try:
        detector = cv2.FaceDetectorYN.create(str(model), "", (320, 320), score_threshold=_SURE)
        # Another network opens as well and fails at its first picture.
        detector.detect(np.zeros((320, 320, 3), np.uint8))
    except cv2.error as error:
        raise FacesError(f"{model} is no YuNet that OpenCV opens ({error.err})") from None

    def detect(pixels: np.ndarray) -> list[Box]:
        detector.setInputSize((pixels.shape[1], pixels.shape[0]))
        _, found = detector.detect(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        return [] if found is None else [tuple(map(float, row[:4])) for row in found]

    return detect


def _cascade(model: Path) -> Detector:
    try:
        from skimage.feature import Cascade
    except ImportError:
        raise FacesError(f"{model} is read by scikit-image, not installed: pip install scikit-image") from None
    try:
        cascade = Cascade(str(model))
    except Exception as error:
        # Its parser says nothing of what it may raise: ValueError, AttributeError, ParseError, ...
        raise FacesError(f"{model} is no LBP cascade ({type(error).__name__}: {error})") from None

    def detect(pixels: np.ndarray) -> list[Box]:
        size = min(pixels.shape[:2])
        found = cascade.detect_multi_scale(
            img=cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY),
            scale_factor=1.2,
            step_ratio=1,
            min_size=(_SMALLEST, _SMALLEST),
            max_size=(size, size),
        )
        return [(float(one["c"]), float(one["r"]), float(one["width"]), float(one["height"])) for one in found]

    return detect
