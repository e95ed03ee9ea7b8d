"""Layouts of slides and interface mock-ups: shapes and placeholders from back to front, from JSON files and decks.

Boxes are shares of the canvas (left, top, right, bottom). Colours are parts of a theme, drawn anew for each picture, or
fixed ones as #rrggbb.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from producer.synthesize.colour import Rgb
from producer.synthesize.layout import Align
from producer.synthesize.sample import SynthesisError

Box = tuple[float, float, float, float]
Fill = Literal["ground", "panel", "muted", "accent"]
Ink = Literal["ink", "on_panel", "on_muted", "on_accent", "accent_text"]
Hex = Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
Anchor = Literal["auto", "top", "middle", "bottom"]


class Shape(BaseModel, frozen=True, strict=True, extra="forbid"):
    """A filled rectangle, round at its corners by `radius` shares of the canvas's width, or an ellipse."""

    type: Literal["rect", "ellipse"]
    box: Box
    fill: Fill | Hex
    radius: float = Field(default=0.0, ge=0, le=0.5)


class Placeholder(BaseModel, frozen=True, strict=True, extra="forbid"):
    """A box of text."""

    type: Literal["text"]
    role: str = Field(min_length=1)  # as a caption calls it
    box: Box
    placeholder: str  # what stood there
    ink: Ink | Hex = "ink"
    size: tuple[float, float]  # least and most em, share of the canvas's shorter side
    most: int = Field(ge=1)  # characters; a Latin letter counts half
    align: Align = "left"
    anchor: Anchor = "auto"  # auto: running text at the top of its box, all else in the middle
    bullet: bool = False
    font: str = ""  # family that is used where the fonts folder has it and it draws the text
    optional: bool = False  # left out where no text drawn fits; else that is an error


class Layout(BaseModel, frozen=True, strict=True, extra="forbid"):
    """A template."""

    kind: str = Field(min_length=1)
    aspect: Annotated[str, Field(pattern=r"^[1-9]\d?:[1-9]\d?$")]
    elements: tuple[Annotated[Shape | Placeholder, Field(discriminator="type")], ...] = Field(min_length=1)
    ground: Literal["ground"] | Hex = "ground"

    @model_validator(mode="after")
    def _sensible(self) -> "Layout":
        for number, element in enumerate(self.elements):
            left, top, right, bottom = element.box
            if not (left < right and top < bottom):
                raise ValueError(f"elements.{number}.box: {element.box} is empty; write left, top, right, bottom")
            if isinstance(element, Placeholder) and not (left >= 0 and top >= 0 and right <= 1 and bottom <= 1):
                raise ValueError(f"elements.{number}.box: {element.box} leaves the canvas; keep text within 0 to 1")
        if not any(isinstance(element, Placeholder) for element in self.elements):
            raise ValueError("elements: no placeholder of type text; add one")
        return self


def read_layouts(folder: Path) -> list[tuple[str, Layout]]:
    """Every layout in `folder` with a name: each .json, and of each .pptx its slides, or its layouts if it has none.

    SynthesisError for a folder without any, and for a file that is wrong or must not be read.
    """
    # Here, since settings are read by commands that need no decks.
    from producer.synthesize.deck import read_deck

    if not folder.is_dir():
        raise SynthesisError(f"template.folder: {folder} is no folder; name one that holds layouts as .json or .pptx")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".json", ".pptx"))
    if not files:
        raise SynthesisError(f"template.folder: {folder} holds no .json and no .pptx; add a layout")
    found: list[tuple[str, Layout]] = []
    for path in files:
        if path.suffix.lower() == ".pptx":
            found += read_deck(path)
        else:
            found.append((path.stem, _read_json(path)))
    return found


def _read_json(path: Path) -> Layout:
    try:
        return Layout.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SynthesisError(f"template.folder: {path}: {where}: {first['msg']}") from None
    except OSError as error:
        raise SynthesisError(f"template.folder: {path}: {error.strerror}") from None


def rgb(hex: str) -> Rgb:
    """#rrggbb as numbers."""
    return int(hex[1:3], 16), int(hex[3:5], 16), int(hex[5:7], 16)
