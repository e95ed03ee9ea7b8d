"""Many samples as one picture: each with its caption below."""

import os
from pathlib import Path

from PIL import Image, ImageDraw

from producer.synthesize.breaking import break_lines
from producer.synthesize.fonts import Fonts
from producer.synthesize.sample import Sample

_COLUMNS, _CELL, _TEXT, _GAP, _SIZE = 6, 300, 64, 10, 13


def contact_sheet(samples: list[Sample], path: Path, fonts: Fonts) -> None:
    """Write `samples` to the PNG at `path`, six a row, captions cut to four lines."""
    rows = -(-len(samples) // _COLUMNS)
    width = _COLUMNS * (_CELL + _GAP) + _GAP
    sheet = Image.new("RGB", (width, rows * (_CELL + _TEXT + _GAP) + _GAP), (244, 244, 242))
    for number, sample in enumerate(samples):
        left = _GAP + number % _COLUMNS * (_CELL + _GAP)
        top = _GAP + number // _COLUMNS * (_CELL + _TEXT + _GAP)
        small = sample.image.copy()
        small.thumbnail((_CELL, _CELL), Image.Resampling.LANCZOS)
        sheet.paste(small, (left + (_CELL - small.width) // 2, top + (_CELL - small.height) // 2))
        _caption(ImageDraw.Draw(sheet), sample.caption, left, top + _CELL + 2, fonts)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    sheet.save(aside, "PNG")
    os.replace(aside, path)


def _caption(canvas: ImageDraw.ImageDraw, caption: str, left: int, top: int, fonts: Fonts) -> None:
    faces = fonts.drawing(caption)
    font = fonts.faces[faces[0] if faces else 0].at(_SIZE)
    lines = break_lines(caption, _CELL, font.getlength) or [caption]
    for number, line in enumerate(lines[:4]):
        cut = f"{line[:-1]}..." if number == 3 and len(lines) > 4 else line
        canvas.text((left, top + number * (_SIZE + 2)), cut, fill=(40, 40, 40), font=font)
