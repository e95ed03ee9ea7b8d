"""Face mosaic: pictures of people whose faces were hidden by large square pixels. None without a face detector."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from producer.digest import hash_file
from producer.operator.faces import Face, check_detector, find_faces, no_detector
from producer.operator.judgement import OptIn, Picture, Sample, Score
from producer.operator.measured import Measured
from producer.operator.mosaic import Mosaic

_MARGIN = 0.25  # of the face's size, on each side: a window of the measure is 64 pixels, and mosaics reach beyond chins


class FaceMosaicConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 6
    model: Path | None = None  # a face detector, see producer/operator/faces.py; none: the operator is off
    # As that of `mosaic`, which measures alike. One face, found behind cells of 5 to 12 pixels, has 0.3 to 0.9 but for
    # three views of 56; shown as it is 0.1 at most.
    max: float = Field(default=0.25, ge=0, le=1)

    def operator(self) -> "FaceMosaic":
        assert self.model
        check_detector("operators.face_mosaic.model", self.model)
        return FaceMosaic(self.model, self.max)

    def off_reason(self) -> str:
        return no_detector("face_mosaic", self.model)

    def content(self) -> dict[str, Any]:
        return {"model": hash_file(self.model)} if self.model else {}


class FaceMosaic(Measured):
    """Score: as that of `mosaic`, 0 to 1, around the face where it is highest, at SIDE pixels of the picture's longest
    side at most; 0 without a face. Higher means a more perfect mosaic. Kept up to `max`.

    A mosaic that leaves no face to be found is for `mosaic`: with the cascade above that is from ten cells a face on.
    """

    name = "face_mosaic"
    version = 2

    def __init__(self, model: Path, most: float) -> None:
        super().__init__(most=most)
        self._model, self._mosaic = model, Mosaic()

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        found = zip(samples, find_faces(samples, self._model), strict=True)
        return [Score(None) if faces is None else Score(self._highest(one.picture, faces)) for one, faces in found]

    def _highest(self, picture: Picture | None, faces: Sequence[Face]) -> float:
        assert picture is not None
        return max((self._around(picture, face) for face in faces), default=0.0)

    def _around(self, picture: Picture, face: Face) -> float:
        across, down = _MARGIN * (face.right - face.left), _MARGIN * (face.bottom - face.top)
        wide = Face(face.left - across, face.top - down, face.right + across, face.bottom + down)
        part = Face(*(min(1.0, max(0.0, edge)) for edge in wide)).cut(picture.pixels)
        return self._mosaic.measure(Picture(part.shape[1], part.shape[0], part))
