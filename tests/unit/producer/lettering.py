"""Fonts and texts that the tests of synthesis draw from: fonts of the mplfonts package, and small ones made here."""

import importlib.util
from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from producer.synthesize.corpus import Corpus, CorpusConfig
from producer.synthesize.fonts import Fonts, FontsConfig

TEXT = """床前明月光，疑是地上霜。举头望明月，低头思故乡。
饕餮、魑魅、魍魉、貔貅：这些都是古书里的怪兽。
我们在2024年用Python写了一个well-known的程序，它能处理“中英文混排”的段落（包括标点）。
The quick brown fox jumps over the lazy dog, while the cat (who was asleep) did not notice at all.
Opening hours: Monday to Friday 9-17, Saturday 10-14. Closed on Sunday.
"""


def package_fonts(package: str = "mplfonts", folder: str = "fonts") -> Path:
    found = importlib.util.find_spec(package)
    assert found and found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / folder


def fonts(*only: str, handwritten: tuple[str, ...] = ()) -> Fonts:
    return Fonts(FontsConfig(folder=package_fonts(), only=only or ("SimHei.ttf",), handwritten=handwritten))


def corpus(folder: Path, faces: Fonts, text: str = TEXT, **settings: float) -> Corpus:
    path = folder / "text.txt"
    path.write_text(text, "utf-8")
    return Corpus(CorpusConfig.model_validate({"files": (path,)} | settings), faces)


def lying_font(path: Path) -> None:
    """A font whose map claims A, B and C: A is drawn, B looks like its .notdef, C leaves no ink."""
    builder = FontBuilder(1000, isTTF=True)
    names = [".notdef", "A", "B", "C", "space"]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({65: "A", 66: "B", 67: "C", 32: "space"})
    box, bar, nothing = _rectangle(100, 0, 600, 700), _rectangle(250, 0, 400, 700), TTGlyphPen(None).glyph()
    builder.setupGlyf({".notdef": box, "A": bar, "B": box, "C": nothing, "space": nothing})
    builder.setupHorizontalMetrics({name: (700, 0) for name in names})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Liar", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def _rectangle(left: int, bottom: int, right: int, top: int) -> object:
    pen = TTGlyphPen(None)
    pen.moveTo((left, bottom))
    for corner in ((left, top), (right, top), (right, bottom)):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()
