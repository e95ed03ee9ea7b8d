"""Structured templates: slides and interface mock-ups whose placeholders are filled from a corpus (report 3.4.3).

A layout is a JSON file: `kind` (what a caption calls it), `aspect`, and `elements` from back to front, with boxes in
shares of the canvas (left, top, right, bottom) and colours by their part in a theme. Text changes, the layout does not.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageDraw
from pydantic import BaseModel, Field, ValidationError, model_validator

from producer.api.bucket import bucket
from producer.synthesize.chance import chance
from producer.synthesize.colour import PALETTE, Colour, contrast, ground_and_ink, ink_on
from producer.synthesize.compositional import region
from producer.synthesize.corpus import Corpus
from producer.synthesize.fonts import Face, Fonts
from producer.synthesize.layout import Align, Block, fit
from producer.synthesize.sample import Sample, SynthesisError, TextTruth, Truth

# Texts tried for one placeholder.
_TRIES = 20

Box = tuple[float, float, float, float]
Fill = Literal["ground", "panel", "muted", "accent"]
Ink = Literal["ink", "on_panel", "on_muted", "on_accent", "accent_text"]
# What each ink is read on.
_UNDER: dict[Ink, Fill] = {
    "ink": "ground",
    "on_panel": "panel",
    "on_muted": "muted",
    "on_accent": "accent",
    "accent_text": "panel",
}


class TemplateConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    folder: Path  # of the layouts, *.json
    resolution: int = Field(default=768, ge=128)  # pixels squared of a canvas
    least_size: int = Field(default=14, ge=6)  # pixels an em, whatever a layout says
    contrast: float = Field(default=3.0, ge=1.5, le=4.5)


class Shape(BaseModel, frozen=True, strict=True, extra="forbid"):
    """A filled rectangle, round at its corners by `radius` shares of the canvas's width, or an ellipse."""

    type: Literal["rect", "ellipse"]
    box: Box
    fill: Fill
    radius: float = Field(default=0.0, ge=0, le=0.5)


class Placeholder(BaseModel, frozen=True, strict=True, extra="forbid"):
    """A box of text."""

    type: Literal["text"]
    role: str = Field(min_length=1)  # as a caption calls it
    box: Box
    placeholder: str  # what stood there
    ink: Ink = "ink"
    size: tuple[float, float]  # least and most em, share of the canvas's shorter side
    most: int = Field(ge=1)  # characters; a Latin letter counts half
    align: Align = "left"


class Layout(BaseModel, frozen=True, strict=True, extra="forbid"):
    """A template."""

    kind: str = Field(min_length=1)
    aspect: Annotated[str, Field(pattern=r"^[1-9]\d?:[1-9]\d?$")]
    elements: tuple[Annotated[Shape | Placeholder, Field(discriminator="type")], ...] = Field(min_length=1)

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


class Template:
    """Makes sample `index`, a pure function of (seed, index), the corpus, the fonts and the layouts."""

    name = "template"

    def __init__(self, config: TemplateConfig, corpus: Corpus, fonts: Fonts, seed: int) -> None:
        self._config, self._corpus, self._fonts, self._seed = config, corpus, fonts, seed
        self._layouts = _read(config.folder)

    def make(self, index: int) -> Sample:
        """Raises SynthesisError where no text drawn fits a placeholder."""
        rng = chance(self._seed, self.name, index)
        name, layout = self._layouts[rng.integers(len(self._layouts))]
        canvas = bucket(self._config.resolution, layout.aspect)
        fills, inks = _theme(rng, self._config.contrast)
        image = Image.new("RGB", (canvas.width, canvas.height), fills["ground"].rgb)
        preferred = int(rng.integers(len(self._fonts.faces)))
        written: list[TextTruth] = []
        for element in layout.elements:
            if isinstance(element, Shape):
                _draw(image, element, fills[element.fill])
                continue
            text, block = self._fill(name, element, image, preferred, rng)
            left, top, _, bottom = _pixels(element.box, image)
            # Headings, points and buttons stand in the middle of their boxes, running text at the top.
            room = bottom - top - block.height
            place = left, top + (room // 2 if room < 3 * block.size else 0)
            written.append(_write(image, element, text, block, place, inks[element.ink], fills[_UNDER[element.ink]]))
        truth = Truth(
            way=self.name,
            seed=self._seed,
            index=index,
            width=image.width,
            height=image.height,
            setting=name,
            texts=tuple(written),
        )
        return Sample(image, _caption(layout, written, fills, truth), truth)

    def _fill(
        self, name: str, slot: Placeholder, image: Image.Image, preferred: int, rng: np.random.Generator
    ) -> tuple[str, Block]:
        left, top, right, bottom = _pixels(slot.box, image)
        least, most = (max(self._config.least_size, round(share * min(image.size))) for share in slot.size)
        for _ in range(_TRIES):
            passage = self._corpus.phrase(rng, slot.most)
            face = self._face(passage.faces, preferred)
            sizes, width, height = (least, max(least, most)), right - left, bottom - top
            block = fit(passage.text, face, width, height, sizes=sizes, leading=1.35, align=slot.align)
            if block:
                return passage.text, block
        raise SynthesisError(
            f"template.folder: {name}.json: {slot.role}: {_TRIES} texts of up to {slot.most} characters do not fit "
            f"{right - left} x {bottom - top} pixels at {least}; make its box larger or its size or most smaller"
        )

    def _face(self, faces: tuple[int, ...], preferred: int) -> Face:
        """The same face all over a picture, where it draws the text."""
        return self._fonts.faces[preferred if preferred in faces else faces[0]]


def _read(folder: Path) -> list[tuple[str, Layout]]:
    if not folder.is_dir():
        raise SynthesisError(f"template.folder: {folder} is no folder; name one that holds layouts as .json")
    files = sorted(folder.glob("*.json"))
    if not files:
        raise SynthesisError(f"template.folder: {folder} holds no .json; add a layout")
    found = []
    for path in files:
        try:
            found.append((path.stem, Layout.model_validate_json(path.read_bytes())))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise SynthesisError(f"template.folder: {path}: {where}: {first['msg']}") from None
        except OSError as error:
            raise SynthesisError(f"template.folder: {path}: {error.strerror}") from None
    return found


def _theme(rng: np.random.Generator, least: float) -> tuple[dict[Fill, Colour], dict[Ink, Colour]]:
    """A colour for every part: ground, panel and muted differ, and every ink can be read on what it stands on."""
    ground, ink = ground_and_ink(rng, least)
    others = [colour for colour in PALETTE if colour != ground]
    near = sorted(others, key=lambda colour: contrast(colour.rgb, ground.rgb))
    strong = [colour for colour in others if contrast(colour.rgb, ground.rgb) >= 2.0] or near[-3:]
    accent = strong[rng.integers(len(strong))]
    plain = [colour for colour in near if colour != accent]
    panel, muted = plain[rng.integers(2)], plain[2 + rng.integers(2)]
    fills: dict[Fill, Colour] = {"ground": ground, "panel": panel, "muted": muted, "accent": accent}
    readable = contrast(accent.rgb, panel.rgb) >= least
    inks: dict[Ink, Colour] = {
        "ink": ink,
        "on_panel": ink if contrast(ink.rgb, panel.rgb) >= least else ink_on(panel.rgb, rng, least),
        "on_muted": ink_on(muted.rgb, rng, least),
        "on_accent": ink_on(accent.rgb, rng, least),
        "accent_text": accent if readable else ink_on(panel.rgb, rng, least),
    }
    return fills, inks


def _pixels(box: Box, image: Image.Image) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    width, height = image.size
    return round(left * width), round(top * height), round(right * width), round(bottom * height)


def _draw(image: Image.Image, shape: Shape, colour: Colour) -> None:
    canvas, box = ImageDraw.Draw(image), _pixels(shape.box, image)
    if shape.type == "ellipse":
        canvas.ellipse(box, fill=colour.rgb)
    else:
        canvas.rounded_rectangle(box, radius=round(shape.radius * image.width), fill=colour.rgb)


def _write(
    image: Image.Image,
    slot: Placeholder,
    text: str,
    block: Block,
    place: tuple[int, int],
    ink: Colour,
    ground: Colour,
) -> TextTruth:
    mask = Image.new("L", image.size)
    block.draw(mask, *place)
    image.paste(ink.rgb, mask=mask)
    return TextTruth(
        text=text,
        role=slot.role,
        lines=block.truth(*place),
        font=block.face.name,
        font_size=float(block.size),
        ink=ink.name,
        ink_rgb=ink.rgb,
        ground=ground.name,
        align=block.align,
    )


def _caption(layout: Layout, written: list[TextTruth], fills: dict[Fill, Colour], truth: Truth) -> str:
    said = [f"A {layout.kind} on a plain {fills['ground'].name} background with {fills['accent'].name} accents."]
    for text in written:
        points = [point for line in text.lines for point in line.outline]
        across = sum(x for x, _ in points) / len(points) / truth.width
        down = sum(y for _, y in points) / len(points) / truth.height
        said.append(f'The {text.role}, in {text.ink} at the {region(across, down)}, reads "{text.text}".')
    return " ".join(said)
