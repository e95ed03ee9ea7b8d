"""Pictures side by side with their captions under them."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_GAP = 12  # pixels between pictures and around them
_SIZE = 15  # of the captions' letters
_LEADING = 20  # pixels from line to line
_LINES = 4  # of a caption; what is longer ends in dots

# Fonts with Chinese glyphs: in a package, and where Linux distributions put theirs.
_PACKAGED = ("mplfonts", "fonts/NotoSansCJKsc-Regular.otf")
_SYSTEM = (
    "opentype/noto/NotoSansCJK-Regular.ttc",
    "truetype/wqy/wqy-zenhei.ttc",
    "google-noto-cjk/NotoSansCJK-Regular.ttc",
)


def find_font(chosen: Path | None = None) -> Font:
    """The `chosen` font, or one with Chinese glyphs, or Pillow's own, which has none."""
    if chosen:
        return ImageFont.truetype(chosen, _SIZE)
    package, inner = _PACKAGED
    spec = importlib.util.find_spec(package)
    files = [Path(root) / inner for root in (spec.submodule_search_locations or ())] if spec else []
    files += [Path("/usr/share/fonts") / name for name in _SYSTEM]
    found = next((file for file in files if file.is_file()), None)
    return ImageFont.truetype(found, _SIZE) if found else ImageFont.load_default(_SIZE)


def compose(pictures: Sequence[np.ndarray], captions: Sequence[str], columns: int, font: Font) -> Image.Image:
    """`pictures` (uint8 [h, w, 3] of any sizes) in rows of `columns`, each in a cell as large as the largest."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    lines = [wrap(caption, width, font) for caption in captions]
    cell_h, cell_w = height + _GAP + _LEADING * max(map(len, lines)), width + _GAP
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell_w + _GAP, rows * (cell_h + _GAP) + _GAP), "white")
    canvas = ImageDraw.Draw(sheet)
    for k, (picture, text) in enumerate(zip(pictures, lines, strict=True)):
        left, top = _GAP + k % columns * cell_w, _GAP + k // columns * (cell_h + _GAP)
        sheet.paste(Image.fromarray(picture), (left, top))
        for n, line in enumerate(text):
            canvas.text((left, top + height + _GAP // 2 + n * _LEADING), line, fill="black", font=font)
    return sheet


def save(sheet: Image.Image, path: Path) -> None:
    """Write `sheet` as the PNG at `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    sheet.save(aside, "PNG")
    os.replace(aside, path)


def wrap(text: str, width: int, font: Font) -> list[str]:
    """`text` in lines of at most `width` pixels, broken at spaces where there are any, anywhere in Chinese."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < _LINES:
        fits = next((n for n in range(len(rest), 1, -1) if font.getlength(rest[:n]) <= width), 1)
        space = rest.rfind(" ", 0, fits + 1)
        cut = space if fits < len(rest) and space > 0 and rest[fits - 1].isascii() else fits
        lines.append(rest[:cut])
        rest = rest[cut:].lstrip()
    if rest:
        lines[-1] = lines[-1][:-1] + "…"
    return lines or [""]
