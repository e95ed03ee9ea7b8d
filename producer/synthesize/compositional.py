"""Compositional rendering: text on paper, wood, cloth or a sign, warped and lit into a background (report 3.4.2)."""

from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from producer.api.bucket import Bucket, bucket
from producer.synthesize.backdrop import Backdrop, BackdropConfig, Backdrops
from producer.synthesize.chance import chance
from producer.synthesize.colour import Colour, ink_on
from producer.synthesize.corpus import Corpus
from producer.synthesize.fonts import Fonts
from producer.synthesize.layout import Block, fit, written
from producer.synthesize.medium import KINDS, Medium, MediumKind, Pixels, medium
from producer.synthesize.sample import LineTruth, Point, Sample, SynthesisError, Truth
from producer.synthesize.wording import Language, quote, region

_TRIES = 20
# Pixels of the flat medium for one of the picture, so that the warp shrinks and never enlarges.
_FINER = 2
# Points along each long edge of a line's outline: a curled line is no rectangle.
_EDGE = 6


_Image = np.ndarray[Any, np.dtype[np.uint8]]


class CompositionalConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    resolution: int = Field(default=512, ge=128)  # pixels squared of a picture
    aspects: tuple[Annotated[str, Field(pattern=r"^[1-9]\d?:[1-9]\d?$")], ...] = Field(
        default=("1:1", "2:3", "3:2", "3:4", "4:3", "9:16", "16:9"), min_length=1
    )
    media: tuple[MediumKind, ...] = Field(default=KINDS, min_length=1)
    max_characters: int = Field(default=24, ge=2)  # of the text; a Latin letter counts half
    least_size: int = Field(default=18, ge=6)  # pixels an em in the picture, before perspective
    turn: float = Field(default=12.0, ge=0, le=45)  # most degrees that the medium is turned
    tilt: float = Field(default=0.08, ge=0, le=0.2)  # most that perspective moves a corner, share of the medium
    contrast: float = Field(default=3.0, ge=1.5, le=4.5)
    chinese_captions: float = Field(default=0.3, ge=0, le=1)  # share; the others are English, whatever the text is
    backdrop: BackdropConfig = BackdropConfig()


class _Warp(NamedTuple):
    """From the flat medium to the picture: a curl, then perspective."""

    matrix: np.ndarray[Any, np.dtype[np.float64]]
    height: float  # of the curl, flat pixels
    length: float  # flat pixels a wave
    phase: float

    def curl(self, x: Any) -> Any:
        """How far down the column at `x` is moved."""
        return self.height * np.sin(2 * np.pi * x / self.length + self.phase)

    def place(self, points: list[Point]) -> tuple[Point, ...]:
        """Where flat points come to lie."""
        flat = np.asarray([[(x, y + self.curl(x)) for x, y in points]], np.float64)
        moved = cv2.perspectiveTransform(flat, self.matrix)[0]
        return tuple((round(float(x), 2), round(float(y), 2)) for x, y in moved)


class Compositional:
    """Makes sample `index`, a pure function of (seed, index), the corpus, the fonts and the backgrounds."""

    name = "compositional"

    def __init__(self, config: CompositionalConfig, corpus: Corpus, fonts: Fonts, seed: int) -> None:
        self._config, self._corpus, self._fonts, self._seed = config, corpus, fonts, seed
        self._backdrops = Backdrops(config.backdrop)

    def make(self, index: int) -> Sample:
        """Raises SynthesisError for a background that cannot be read, and where no text drawn fits its medium."""
        rng = chance(self._seed, self.name, index)
        canvas = bucket(self._config.resolution, self._config.aspects[rng.integers(len(self._config.aspects))])
        backdrop = self._backdrops.draw(canvas.width, canvas.height, rng)
        for _ in range(_TRIES):
            passage = self._corpus.phrase(rng, self._config.max_characters)
            width, height = (round(side * rng.uniform(0.5, 0.78)) * _FINER for side in (canvas.width, canvas.height))
            height = min(height, round(width * 1.4))
            kind = self._config.media[rng.integers(len(self._config.media))]
            flat = medium(kind, width, height, rng)
            block = self._set(passage.text, passage.faces, width, height, rng)
            if block:
                warp = _warp(canvas, flat, self._config.turn, self._config.tilt, rng)
                ink = ink_on(flat.ground, rng, self._config.contrast)
                left, top = round(width * 0.11), (height - block.height) // 2
                lit = _composed(backdrop.pixels, _inked(flat, block, (left, top), ink, rng), warp, rng)
                image = Image.fromarray(lit)
                lines = _lines(block, (left, top), warp)
                text = written(passage.text, block, lines, ink, (flat.name, flat.ground), finer=_FINER)
                x, y = warp.place([(width / 2, height / 2)])[0]
                where = x / canvas.width, y / canvas.height
                language: Language = "zh" if rng.random() < self._config.chinese_captions else "en"
                hand = block.face.handwritten
                said = _said(where, flat, backdrop, ink, passage.text, language, handwritten=hand)
                truth = Truth(
                    way=self.name,
                    seed=self._seed,
                    index=index,
                    width=image.width,
                    height=image.height,
                    setting=f"{flat.name}, {backdrop.name}",
                    texts=(text,),
                )
                return Sample(image, said, truth)
        raise SynthesisError(
            f"compositional.least_size: {_TRIES} texts of up to {self._config.max_characters} characters do not fit a "
            f"medium in {canvas.width} x {canvas.height} pixels at {self._config.least_size}; make one of them smaller"
        )

    def _set(
        self, text: str, faces: tuple[int, ...], width: int, height: int, rng: np.random.Generator
    ) -> Block | None:
        least = self._config.least_size * _FINER
        return fit(
            text,
            self._fonts.faces[faces[rng.integers(len(faces))]],
            round(width * 0.78),
            round(height * 0.76),
            sizes=(least, max(least, round(min(width, height) * rng.uniform(0.14, 0.36)))),
            leading=float(rng.uniform(1.25, 1.5)),
            align="center" if rng.random() < 0.7 else "left",
        )


def _said(
    place: Point, flat: Medium, backdrop: Backdrop, ink: Colour, text: str, language: Language, *, handwritten: bool
) -> str:
    where, quoted = region(*place, language), quote(text, language)
    if language == "zh":
        done = "手写" if handwritten else flat.written[1]
        return f"画面{where}，{backdrop.chinese}有{flat.chinese}，上面{done}着{ink.chinese}的文字{quoted}。"
    done = "handwritten" if handwritten else flat.written[0]
    return (
        f"At the {where} of the picture there is {flat.name}, {backdrop.name}. "
        f"On it, {ink.name} text is {done}: {quoted}."
    )


def _inked(flat: Medium, block: Block, place: tuple[int, int], ink: Colour, rng: np.random.Generator) -> Pixels:
    """The medium with the text on it; some of its texture shows through the ink."""
    mask = Image.new("L", flat.surface.shape[1::-1])
    block.draw(mask, *place)
    cover = (np.asarray(mask, np.float32) / 255 * rng.uniform(0.88, 1.0))[..., None]
    texture = flat.surface / (np.asarray(flat.ground, np.float32) / 255 + 1e-3)
    body = np.asarray(ink.rgb, np.float32) / 255 * np.clip(0.35 + 0.65 * texture, 0.8, 1.2)
    return np.clip(flat.surface * (1 - cover) + body * cover, 0, 1).astype(np.float32)


def _warp(canvas: Bucket, flat: Medium, turn: float, tilt: float, rng: np.random.Generator) -> _Warp:
    height, width = flat.surface.shape[:2]
    curl = height * flat.bend * float(rng.uniform(0.2, 1.0)) * 0.5
    length, phase = width * float(rng.uniform(0.8, 1.8)), float(rng.uniform(0, 2 * np.pi))
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
    angle = np.deg2rad(rng.uniform(-turn, turn))
    turned = (corners - corners.mean(0)) @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = turned / _FINER + rng.uniform(-tilt, tilt, (4, 2)) * (width / _FINER, height / _FINER)
    # All of it stays in the picture, with a rim for the curl.
    room = np.array([canvas.width, canvas.height]) - 2 * (0.02 * min(canvas) + curl / _FINER)
    turned *= min(1.0, *(room / (turned.max(0) - turned.min(0))))
    slack = room - (turned.max(0) - turned.min(0))
    corner = (np.array([canvas.width, canvas.height]) - room) / 2 + slack * rng.uniform(0.15, 0.85, 2)
    placed = turned - turned.min(0) + corner
    matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), placed.astype(np.float32))
    return _Warp(np.asarray(matrix, np.float64), curl, length, phase)


def _composed(behind: Pixels, flat: Pixels, warp: _Warp, rng: np.random.Generator) -> _Image:
    """The medium curled, shaded, warped over `behind` with a soft shadow, under one light and one grain."""
    height, width = behind.shape[:2]
    rim = int(np.ceil(warp.height)) + 2
    x = np.arange(flat.shape[1], dtype=np.float32)
    slope = np.cos(2 * np.pi * x / warp.length + warp.phase) * (warp.height / warp.length) * 2 * np.pi
    padded = np.zeros((flat.shape[0] + 2 * rim, flat.shape[1], 4), np.float32)
    padded[rim:-rim, :, :3] = flat * (1 + 0.8 * slope.astype(np.float32))[None, :, None]
    padded[rim:-rim, :, 3] = 1
    padded[..., :3] *= padded[..., 3:]
    grid_y, grid_x = np.mgrid[0 : padded.shape[0], 0 : padded.shape[1]].astype(np.float32)
    curled = cv2.remap(padded, grid_x, grid_y - warp.curl(grid_x).astype(np.float32), cv2.INTER_LINEAR)
    shift = np.array([[1, 0, 0], [0, 1, -rim], [0, 0, 1]], np.float64)
    # Halved first: INTER_AREA averages what a warp would skip.
    half = cv2.resize(curled, None, fx=1 / _FINER, fy=1 / _FINER, interpolation=cv2.INTER_AREA)
    grow = np.array([[_FINER, 0, (_FINER - 1) / 2], [0, _FINER, (_FINER - 1) / 2], [0, 0, 1]], np.float64)
    over = cv2.warpPerspective(half, warp.matrix @ shift @ grow, (width, height), flags=cv2.INTER_LINEAR)
    cover = np.clip(over[..., 3:], 0, 1)
    away = float(rng.uniform(0.006, 0.02)) * min(width, height)
    moved = np.array([[1, 0, away], [0, 1, away * 1.3]], np.float64)
    shadow = cv2.GaussianBlur(cv2.warpAffine(cover, moved, (width, height)), (0, 0), away)[..., None]
    # The medium takes some of the background's brightness, so that neither glows.
    exposure = 0.82 + 0.3 * float(behind.mean())
    picture = behind * (1 - 0.5 * shadow) * (1 - cover) + over[..., :3] * exposure
    angle = rng.uniform(0, 2 * np.pi)
    y, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = 1 + 0.13 * (across * np.cos(angle) + y * np.sin(angle))
    grain = rng.normal(0, float(rng.uniform(0.003, 0.012)), (height, width, 1))
    return np.clip((picture * light[..., None] + grain) * 255 + 0.5, 0, 255).astype(np.uint8)


def _lines(block: Block, place: tuple[int, int], warp: _Warp) -> tuple[LineTruth, ...]:
    lines = []
    for line in block.truth(*place):
        (x0, y0), _, (x1, y1), _ = line.outline
        along = [x0 + (x1 - x0) * n / (_EDGE - 1) for n in range(_EDGE)]
        outline = warp.place([(x, y0) for x in along] + [(x, y1) for x in reversed(along)])
        lines.append(LineTruth(text=line.text, outline=outline))
    return tuple(lines)
