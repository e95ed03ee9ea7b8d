"""What a way of synthesis gives: a picture, its caption, and the truth about its text."""

from typing import NamedTuple

from PIL import Image
from pydantic import BaseModel

Point = tuple[float, float]


class SynthesisError(ValueError):
    """Fonts, corpus, backgrounds or layouts from which no sample can be made; the message says which and why."""


class LineTruth(BaseModel, frozen=True, strict=True, extra="forbid"):
    """One line as it stands in the picture."""

    text: str
    outline: tuple[Point, ...]  # pixels, clockwise from the top left; four points where the line is straight


class TextTruth(BaseModel, frozen=True, strict=True, extra="forbid"):
    """One block of text."""

    text: str  # the whole, as the caption quotes it
    role: str  # what it is in the picture: text, title, button, ...
    lines: tuple[LineTruth, ...]
    font: str  # family and style
    handwritten: bool  # whether the font looks so
    font_size: float  # pixels an em, before any warp
    ink: str  # colour by name
    ink_rgb: tuple[int, int, int]
    ground: str  # what it stands on, by name
    ground_rgb: tuple[int, int, int]  # its colour, before any light
    align: str


class Truth(BaseModel, frozen=True, strict=True, extra="forbid"):
    """All that is known of a synthetic picture."""

    way: str
    seed: int
    index: int
    width: int
    height: int
    setting: str  # the background, medium or layout, by name
    texts: tuple[TextTruth, ...]


class Sample(NamedTuple):
    """A picture in RGB with what it shows."""

    image: Image.Image
    caption: str
    truth: Truth
