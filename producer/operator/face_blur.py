"""Face blur: pictures of people whose faces were blurred. None without a face detector."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
from pydantic import Field

from producer.digest import hash_file
from producer.operator.clarity import Clarity
from producer.operator.faces import Face, check_detector, find_faces, no_detector
from producer.operator.judgement import NOT_JUDGED, Judgement, OptIn, Picture, Sample, Score

_FACE = 96  # pixels a face is measured at, so that a blur counts by what it hides of the face
_RIM = 0.15  # of the face's size, left out on each side: what is behind it is sharp where the face alone is blurred


class FaceBlurConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 6
    model: Path | None = None  # a face detector, see producer/operator/faces.py; none: the operator is off
    # One face, scaled, mirrored and lit in a dozen ways, has 4.6 to 7.2 as it is and 1.3 to 3.8 blurred by 2.5 % of its
    # width or more: to be set anew by whoever has many.
    min: float = Field(default=4.2)  # ln of squared levels

    def operator(self) -> "FaceBlur":
        assert self.model
        check_detector("operators.face_blur.model", self.model)
        return FaceBlur(self.model, self.min)

    def off_reason(self) -> str:
        return no_detector("face_blur", self.model)

    def content(self) -> dict[str, Any]:
        return {"model": hash_file(self.model)} if self.model else {}


class FaceBlur:
    """Score: as that of `clarity`, -5 to about 11, in the middle of the largest face, scaled down to 96 pixels where it
    has more; of the picture at SIDE pixels of the longest side at most. Higher means sharper. Not judged without a
    face. Kept from `min` on. Only the largest, since people behind may be out of focus.
    """

    name = "face_blur"
    version = 1

    def __init__(self, model: Path, least: float) -> None:
        self._model, self._least, self._clarity = model, least, Clarity()

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        found = zip(samples, find_faces(samples, self._model), strict=True)
        return [
            Score(self._sharpness(one.picture, faces[0]) if one.picture and faces else None) for one, faces in found
        ]

    def judge(self, score: Score) -> Judgement:
        if score.value is None:
            return NOT_JUDGED
        sharp = score.value >= self._least
        return Judgement(score.value, sharp, "" if sharp else f"{score.value:.3g}, below {self._least:g}")

    def _sharpness(self, picture: Picture, face: Face) -> float:
        across, down = _RIM * (face.right - face.left), _RIM * (face.bottom - face.top)
        part = Face(face.left + across, face.top + down, face.right - across, face.bottom - down).cut(picture.pixels)
        scale = min(1.0, _FACE * (1 - 2 * _RIM) / math.sqrt(part.shape[0] * part.shape[1]))
        size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
        small = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
        return self._clarity.measure(Picture(*size, small))
