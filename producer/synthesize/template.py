"""Structured templates: slides and interface mock-ups whose placeholders are filled from a corpus (report 3.4.3).

Layouts are JSON files and decks of slides (see blueprint.py). Text changes, the layout does not.
"""

from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageDraw
from pydantic import BaseModel, Field

from producer.api.bucket import bucket
from producer.synthesize.blueprint import Box, Fill, Ink, Layout, Placeholder, Shape, read_layouts, rgb
from producer.synthesize.chance import chance
from producer.synthesize.colour import PALETTE, Colour, Rgb, contrast, ground_and_ink, ink_on, nearest
from producer.synthesize.corpus import Corpus
from producer.synthesize.fonts import Face, Fonts
from producer.synthesize.layout import Block, fit, written
from producer.synthesize.sample import Sample, SynthesisError, TextTruth, Truth
from producer.synthesize.wording import article, quote, region

# Texts tried for one placeholder.
_TRIES = 20

# What each ink is read on.
_UNDER: dict[Ink, Fill] = {
    "ink": "ground",
    "on_panel": "panel",
    "on_muted": "muted",
    "on_accent": "accent",
    "accent_text": "panel",
}


class TemplateConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    folder: Path  # of the layouts, *.json and *.pptx
    resolution: int = Field(default=768, ge=128)  # pixels squared of a canvas
    least_size: int = Field(default=14, ge=6)  # pixels an em, whatever a layout says
    contrast: float = Field(default=3.0, ge=1.5, le=4.5)


class Template:
    """Makes sample `index`, a pure function of (seed, index), the corpus, the fonts and the layouts."""

    name = "template"

    def __init__(self, config: TemplateConfig, corpus: Corpus, fonts: Fonts, seed: int) -> None:
        self._config, self._corpus, self._fonts, self._seed = config, corpus, fonts, seed
        self._layouts = read_layouts(config.folder)

    def make(self, index: int) -> Sample:
        """Raises SynthesisError where no text drawn fits a placeholder."""
        rng = chance(self._seed, self.name, index)
        name, layout = self._layouts[rng.integers(len(self._layouts))]
        canvas = bucket(self._config.resolution, layout.aspect)
        theme = _Theme(rng, self._config.contrast)
        image = Image.new("RGB", (canvas.width, canvas.height), theme.fill(layout.ground).rgb)
        preferred = int(rng.integers(len(self._fonts.faces)))
        made: list[TextTruth] = []
        for element in layout.elements:
            if isinstance(element, Shape):
                _draw(image, element, theme.fill(element.fill))
                continue
            text, block = self._fill(name, element, image, preferred, rng)
            if block:
                ground, ink = theme.ink(element, image, rng)
                made.append(_write(image, element, text, block, ink, ground))
        if not made:
            raise SynthesisError(
                f"template.folder: {name}: no text fits any of its placeholders in {canvas.width} x {canvas.height} "
                "pixels; make template.resolution larger, or remove it"
            )
        truth = Truth(
            way=self.name,
            seed=self._seed,
            index=index,
            width=image.width,
            height=image.height,
            setting=name,
            texts=tuple(made),
        )
        return Sample(image, _caption(layout, made, theme, truth), truth)

    def _fill(
        self, name: str, slot: Placeholder, image: Image.Image, preferred: int, rng: np.random.Generator
    ) -> tuple[str, Block | None]:
        left, top, right, bottom = _pixels(slot.box, image)
        least, most = (max(self._config.least_size, round(share * min(image.size))) for share in slot.size)
        for _ in range(_TRIES):
            passage = self._corpus.phrase(rng, slot.most)
            face = self._face(passage.faces, preferred, slot.font)
            sizes, height = (least, max(least, most)), bottom - top
            width = right - left - (most if slot.bullet else 0)
            block = fit(passage.text, face, width, height, sizes=sizes, leading=1.35, align=slot.align)
            if block:
                return passage.text, block
        if slot.optional:
            return "", None
        raise SynthesisError(
            f"template.folder: {name}.json: {slot.role}: {_TRIES} texts of up to {slot.most} characters do not fit "
            f"{right - left} x {bottom - top} pixels at {least}; make its box larger or its size or most smaller"
        )

    def _face(self, faces: tuple[int, ...], preferred: int, family: str) -> Face:
        """The family that the layout names, or the same face all over a picture, where they draw the text."""
        named = next((n for n in faces if family and self._fonts.faces[n].name.startswith(family)), None)
        chosen = named if named is not None else preferred
        return self._fonts.faces[chosen if chosen in faces else faces[0]]


class _Theme:
    """A colour for every part: ground, panel and muted differ, and every ink can be read on what it stands on."""

    def __init__(self, rng: np.random.Generator, least: float) -> None:
        ground, ink = ground_and_ink(rng, least)
        others = [colour for colour in PALETTE if colour != ground]
        near = sorted(others, key=lambda colour: contrast(colour.rgb, ground.rgb))
        strong = [colour for colour in others if contrast(colour.rgb, ground.rgb) >= 2.0] or near[-3:]
        accent = strong[rng.integers(len(strong))]
        plain = [colour for colour in near if colour != accent]
        panel, muted = plain[rng.integers(2)], plain[2 + rng.integers(2)]
        readable = contrast(accent.rgb, panel.rgb) >= least
        self._least = least
        self.fills: dict[Fill, Colour] = {"ground": ground, "panel": panel, "muted": muted, "accent": accent}
        self.inks: dict[Ink, Colour] = {
            "ink": ink,
            "on_panel": ink if contrast(ink.rgb, panel.rgb) >= least else ink_on(panel.rgb, rng, least),
            "on_muted": ink_on(muted.rgb, rng, least),
            "on_accent": ink_on(accent.rgb, rng, least),
            "accent_text": accent if readable else ink_on(panel.rgb, rng, least),
        }

    def fill(self, said: str) -> Colour:
        """The colour of a part, or the fixed one that is said."""
        return nearest(rgb(said)) if said.startswith("#") else self.fills[cast(Fill, said)]

    def ink(self, slot: Placeholder, image: Image.Image, rng: np.random.Generator) -> tuple[Colour, Colour]:
        """What is behind a placeholder, and what it is written in: not its own colour where that is not read."""
        if not slot.ink.startswith("#"):
            part = cast(Ink, slot.ink)
            return self.fills[_UNDER[part]], self.inks[part]
        counts = image.crop(_pixels(slot.box, image)).getcolors(image.width * image.height) or []
        _, most = max(cast(list[tuple[int, Rgb]], counts))
        ground, ink = nearest(most), nearest(rgb(slot.ink))
        return ground, ink if contrast(ink.rgb, ground.rgb) >= self._least else ink_on(ground.rgb, rng, self._least)


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


def _write(image: Image.Image, slot: Placeholder, text: str, block: Block, ink: Colour, ground: Colour) -> TextTruth:
    left, top, _, bottom = _pixels(slot.box, image)
    room = bottom - top - block.height
    # Headings, points and buttons stand in the middle of their boxes, running text at the top.
    anchor = slot.anchor if slot.anchor != "auto" else "middle" if room < 3 * block.size else "top"
    place = left + (block.size if slot.bullet else 0), top + {"top": 0, "middle": room // 2, "bottom": room}[anchor]
    if slot.bullet:
        _bullet(image, place, block, ink)
    mask = Image.new("L", image.size)
    block.draw(mask, *place)
    image.paste(ink.rgb, mask=mask)
    return written(text, block, block.truth(*place), ink, (ground.name, ground.rgb), role=slot.role)


def _bullet(image: Image.Image, place: tuple[int, int], block: Block, ink: Colour) -> None:
    """A dot an em before the first line, at half the height of its capitals."""
    x, y, radius = place[0] - 0.6 * block.size, place[1] + block.lines[0].y - 0.36 * block.size, 0.12 * block.size
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink.rgb)


def _caption(layout: Layout, written: list[TextTruth], theme: _Theme, truth: Truth) -> str:
    ground = theme.fill(layout.ground)
    fills = [theme.fill(element.fill) for element in layout.elements if isinstance(element, Shape)]
    if layout.ground == "ground":
        fills = [theme.fills["accent"]]
    # A layout's own colours, the two that come first.
    accents = list(dict.fromkeys(colour.name for colour in fills if colour.name != ground.name))[:2]
    with_accents = f" with {' and '.join(accents)} accents" if accents else ""
    said = [f"{article(layout.kind).capitalize()} on a plain {ground.name} background{with_accents}."]
    for text in written:
        points = [point for line in text.lines for point in line.outline]
        across = sum(x for x, _ in points) / len(points) / truth.width
        down = sum(y for _, y in points) / len(points) / truth.height
        said.append(f"The {text.role}, in {text.ink} at the {region(across, down)}, reads {quote(text.text)}.")
    return " ".join(said)
