"""The fonts of a folder, and which texts each of them really draws.

Glyphs are set one a character, by FreeType alone: Pillow's shaper looks for a library of the machine's, and where there
is none the same text would come out otherwise. So text that needs shaping (joined or reordered letters, right to left,
marks that stand on others) is found by HarfBuzz, and counts as text that the font does not draw.
"""

import fnmatch
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import uharfbuzz as hb
from fontTools import unicodedata as scripts
from fontTools.ttLib import TTFont, TTLibError
from PIL import ImageFont
from pydantic import BaseModel

from producer.synthesize.sample import SynthesisError

_ENDINGS = {".ttf", ".otf", ".ttc", ".otc"}
# Pixels an em at which a glyph is compared with the font's .notdef.
_PROBE = 24
# What only makes text finer: without them the same text is read.
_FINER = {name: False for name in ("kern", "liga", "clig", "calt", "ccmp", "locl")}


class FontsConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    folder: Path  # searched at any depth for .ttf, .otf and, their first face, .ttc and .otc
    only: tuple[str, ...] = ("*",)  # file names to use, as shell patterns
    handwritten: tuple[str, ...] = ()  # file names of handwriting, as shell patterns: captions then say so


class Face:
    """One font file."""

    def __init__(self, path: Path, *, handwritten: bool) -> None:
        self.path, self.handwritten = path, handwritten
        try:
            with path.open("rb") as file, TTFont(file, lazy=True, fontNumber=0) as font:
                cmap = cast(dict[int, str], font.getBestCmap() or {})
                names = cast(Any, font["name"])
                said = f"{names.getBestFamilyName() or path.stem} {names.getBestSubFamilyName() or ''}"
            self.at(_PROBE)
            self._shaper = hb.Font(hb.Face(hb.Blob.from_file_path(str(path))))
        except (TTLibError, OSError, KeyError, AssertionError, ValueError, hb.HarfBuzzError) as error:
            raise SynthesisError(f"fonts.folder: {path}: not a font that can be read: {error}") from None
        self.name = said.strip()
        self._mapped = frozenset(chr(code) for code, glyph in cmap.items() if glyph != ".notdef")
        missing = next(code for code in range(0x10FFFD, 0, -1) if code not in cmap)
        self._notdef = self._drawn(chr(missing))
        self._draws: dict[str, bool] = {" ": " " in self._mapped}

    def at(self, size: int) -> ImageFont.FreeTypeFont:
        """The face at `size` pixels an em."""
        return _opened(self.path, size)

    def draws(self, char: str) -> bool:
        """True if the font maps `char` to a glyph of its own, and that leaves ink that is not its .notdef's."""
        if char not in self._draws:
            self._draws[char] = char in self._mapped and self._leaves_ink(char)
        return self._draws[char]

    def missing(self, text: str) -> str:
        """The first character of `text` that cannot be drawn, "" if all can: as it stands there, between the others."""
        return next((char for char in text if not self.draws(char)), "") or self._unshaped(text)

    def _unshaped(self, text: str) -> str:
        """The first character of the first run that shaping changes, or of which it finds no glyph."""
        for script, run in _runs(text):
            buffer = hb.Buffer()
            buffer.add_str(run)
            buffer.direction, buffer.script, buffer.language = "ltr", script, "und"
            hb.shape(self._shaper, buffer, _FINER)
            shaped = [info.codepoint for info in buffer.glyph_infos]
            if 0 in shaped or shaped != [self._shaper.get_nominal_glyph(ord(char)) for char in run]:
                return run[0]
        return next((char for char in text if unicodedata.bidirectional(char) in ("R", "AL", "NSM")), "")

    def _leaves_ink(self, char: str) -> bool:
        drawn = self._drawn(char)
        return bool(drawn.any()) and not np.array_equal(drawn, self._notdef)

    def _drawn(self, char: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        mask = self.at(_PROBE).getmask(char, "L")
        return np.array(mask, np.uint8).reshape(mask.size[::-1])


class Fonts:
    """All faces of a folder, in the order of their paths.

    Raises SynthesisError for a folder that is missing or has no font, and for a file that is none.
    """

    def __init__(self, config: FontsConfig) -> None:
        folder = config.folder
        if not folder.is_dir():
            raise SynthesisError(f"fonts.folder: {folder} is no folder; name one that holds .ttf or .otf files")
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file())
        chosen = [path for path in files if _matches(path, config.only)]
        if not chosen:
            raise SynthesisError(
                f"fonts.folder: {folder} holds {len(files)} fonts, none of them named like fonts.only "
                f"{list(config.only)}; add a font or widen fonts.only"
            )
        self.faces = tuple(Face(path, handwritten=_matches(path, config.handwritten)) for path in chosen)

    def drawing(self, text: str) -> tuple[int, ...]:
        """Numbers of the faces that draw every character of `text`."""
        return tuple(number for number, face in enumerate(self.faces) if not face.missing(text))


def _runs(text: str) -> list[tuple[str, str]]:
    """`text` in runs of one script, each with the script's name; marks that scripts share belong to the run before."""
    runs: list[tuple[str, str]] = []
    for char in text:
        script = scripts.script(char)
        if runs and (script in ("Zyyy", "Zinh") or script == runs[-1][0]):
            runs[-1] = runs[-1][0], runs[-1][1] + char
        else:
            runs.append((script, char))
    return runs


def _matches(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns)


@lru_cache(maxsize=64)
def _opened(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
