"""What lies behind: a photograph of a folder, or a wall, a table or a blurred room made by procedure."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, Field

from producer.source.caption import read_captions
from producer.synthesize.medium import Pixels, smooth
from producer.synthesize.sample import SynthesisError

_ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}
# A photograph larger than this is no background but an attack on memory.
_MOST_PIXELS = 100_000_000


class BackdropConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    folder: Path | None = None  # photographs, at any depth; NAME.txt beside one says what it shows
    procedural: float = Field(default=0.25, ge=0, le=1)  # share without a photograph; all where there is no folder


class Backdrop(NamedTuple):
    """A background."""

    name: str  # as a caption says it, after what lies there
    chinese: str  # the same, before it
    pixels: Pixels  # [H, W, 3]


class Backdrops:
    """Backgrounds by chance. Raises SynthesisError for a folder without photographs, and for one that is unreadable."""

    def __init__(self, config: BackdropConfig) -> None:
        self._config = config
        self._files: list[Path] = []
        if config.folder is not None:
            if not config.folder.is_dir():
                raise SynthesisError(f"backdrop.folder: {config.folder} is no folder; name one that holds photographs")
            self._files = sorted(path for path in config.folder.rglob("*") if path.suffix.lower() in _ENDINGS)
            if not self._files:
                raise SynthesisError(f"backdrop.folder: {config.folder} holds no .jpg, .png or .webp; add some")

    def draw(self, width: int, height: int, rng: np.random.Generator) -> Backdrop:
        """A background of that size."""
        if not self._files or rng.random() < self._config.procedural:
            return (_wall, _table, _room)[rng.integers(3)](width, height, rng)
        path = self._files[rng.integers(len(self._files))]
        photograph = _read(path)
        where = float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.2, 0.8))
        fitted = ImageOps.fit(photograph, (width, height), Image.Resampling.LANCZOS, centering=where)
        pixels = np.asarray(fitted, np.float32) / 255
        # A little out of focus, as what lies behind is.
        shown = _said(path)
        name = f"a photographed scene ({shown})" if shown else "a photographed scene"
        chinese = f"在照片场景（{shown}）前" if shown else "在照片场景前"
        return Backdrop(
            f"in front of {name}",
            chinese,
            cv2.GaussianBlur(pixels, (0, 0), float(rng.uniform(0.6, 2.2))).astype(np.float32),
        )


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise SynthesisError(
                    f"backdrop.folder: {path}: {opened.width} x {opened.height} pixels, the most is {_MOST_PIXELS}; "
                    "make it smaller"
                )
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise SynthesisError(f"backdrop.folder: {path}: cannot be read: {error}; repair or remove it") from None


def _said(path: Path) -> str:
    """What is told of a photograph, "" where nothing is, or nothing that a caption may hold."""
    beside = path.with_suffix(".txt")
    try:
        found = read_captions("txt", beside.stat().st_size, beside.read_bytes)
    except OSError:
        return ""
    return " ".join(found.texts.get("raw", "").split()).rstrip(".")


def _wall(width: int, height: int, rng: np.random.Generator) -> Backdrop:
    name, chinese, rgb = (
        ("red", "红", (150, 78, 62)),
        ("white", "白", (214, 210, 202)),
        ("gray", "灰", (134, 134, 132)),
    )[rng.integers(3)]
    down = max(10, height // int(rng.integers(9, 15)))
    across, joint = round(down * 2.6), max(2, down // 10)
    y, x = np.mgrid[0:height, 0:width]
    row = y // down
    shifted = x + (row % 2) * across // 2
    column = shifted // across
    tone = rng.normal(1, 0.09, (height // down + 1, width // across + 2)).astype(np.float32)[row, column]
    mortar = (y % down < joint) | (shifted % across < joint)
    shade = tone * (1 + 0.04 * smooth(width, height, 3, 3, rng))
    brick = np.asarray(rgb, np.float32) / 255 * shade[..., None]
    lime = 0.66 * (1 + 0.03 * smooth(width, height, 2, 2, rng))[..., None]
    pixels = np.where(mortar[..., None], lime, brick)
    return Backdrop(f"in front of a {name} brick wall", f"在{chinese}砖墙前", _finished(pixels, 0.8))


def _table(width: int, height: int, rng: np.random.Generator) -> Backdrop:
    name, chinese, rgb = (
        ("oak", "橡木", (186, 146, 98)),
        ("walnut", "胡桃木", (104, 72, 50)),
        ("whitewashed", "刷白的木板", (206, 200, 188)),
    )[rng.integers(3)]
    planks = int(rng.integers(4, 8))
    number = np.minimum(np.arange(height) * planks // height, planks - 1)
    tone = rng.normal(1, 0.06, planks).astype(np.float32)[number][:, None]
    rings = smooth(width, height, width / 1.5, 12, rng) + 0.6 * smooth(width, height, width / 2, 4, rng)
    shade = tone * (0.94 + 0.1 * np.sin(rings * 3))
    gap = np.diff(number, prepend=number[0]) > 0
    shade[gap | np.roll(gap, 1)] *= 0.45
    pixels = np.asarray(rgb, np.float32) / 255 * shade[..., None]
    return Backdrop(f"on a tabletop of {name} planks", f"在{chinese}桌面上", _finished(pixels, 0.7))


def _room(width: int, height: int, rng: np.random.Generator) -> Backdrop:
    top, bottom = (rng.uniform(0.15, 0.6, 3).astype(np.float32) for _ in range(2))
    fall = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    pixels = np.ascontiguousarray(np.broadcast_to(top * (1 - fall) + bottom * fall, (height, width, 3)), np.float32)
    for _ in range(int(rng.integers(10, 24))):
        layer = pixels.copy()
        centre = int(rng.integers(width)), int(rng.integers(height))
        colour = tuple(float(value) for value in rng.uniform(0.5, 1.0, 3))
        cv2.circle(layer, centre, int(rng.integers(6, max(8, min(width, height) // 9))), colour, -1, cv2.LINE_AA)
        pixels = cv2.addWeighted(layer, 0.45, pixels, 0.55, 0).astype(np.float32)
    name, chinese = "in front of a softly blurred room with points of light", "在虚化的、有点点灯光的室内"
    return Backdrop(name, chinese, _finished(pixels, 4.0))


def _finished(pixels: Pixels, blur: float) -> Pixels:
    return np.clip(cv2.GaussianBlur(np.ascontiguousarray(pixels, np.float32), (0, 0), blur), 0, 1).astype(np.float32)
