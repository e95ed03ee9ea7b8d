"""Small characters: text whose letters are too small to be drawn once the picture has the size it is trained at."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from producer.api.bucket import ASPECTS, bucket, nearest
from producer.operator.judgement import NOT_JUDGED, Judgement, OptIn, Picture, Sample, Score
from producer.operator.reading import Line, read_samples, reader_identity, require_reader
from producer.operator.text_layout import letters

# Share of the characters that may be smaller than the score says: a stray detection or a footnote's mark is not enough.
_SMALLEST = 0.1
_SHAPES = tuple(bucket(1024, aspect) for aspect in ASPECTS)


class SmallCharacterConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 4
    # The VAE's stride is 8 pixels: of smaller letters several share one cell of the latent.
    min: float = Field(default=8.0, ge=0)  # pixels an em, in the training bucket
    resolution: int = Field(default=256, ge=16)  # pixels squared of that bucket: stage S4 trains at 256p

    def operator(self) -> "SmallCharacter":
        require_reader("operators.small_character")
        return SmallCharacter(self.min, self.resolution)

    def content(self) -> dict[str, Any]:
        return reader_identity()


class SmallCharacter:
    """Score: the em that 10 % of the characters are smaller than, as a share of the square root of the area that is
    left of the picture when it is cut to the nearest of the report's nine aspect ratios; 0 to 1, none without text.
    Times the resolution it is pixels after the resize to the training bucket, whatever the resolution. Higher means
    larger. Kept where that is `min` or more. Read at FINE pixels of the longest side at most.

    Characters are counted by the room for them: in a line as many as it is longer than high.
    """

    name = "small_character"
    version = 1
    fine = True

    def __init__(self, least: float, resolution: int) -> None:
        self._least, self._resolution = least, resolution

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        found = zip(samples, read_samples(samples), strict=True)
        return [Score(_smallest(lines, one.picture) if one.picture and lines else None) for one, lines in found]

    def judge(self, score: Score) -> Judgement:
        if score.value is None:
            return NOT_JUDGED
        pixels = score.value * self._resolution
        large = pixels >= self._least
        reason = f"letters of {pixels:.1f} pixels at {self._resolution}p, below {self._least:g}"
        return Judgement(score.value, large, "" if large else reason)


def _smallest(lines: Sequence[Line], picture: Picture) -> float:
    ems, counts = letters(lines, picture.width, picture.height)
    order = np.argsort(ems, kind="stable")
    below = np.cumsum(counts[order])
    em = ems[order][np.searchsorted(below, _SMALLEST * below[-1])]
    shape = nearest(picture.height, picture.width, _SHAPES)
    scale = max(shape.width / picture.width, shape.height / picture.height)
    return float(em * scale / math.sqrt(shape.width * shape.height))
