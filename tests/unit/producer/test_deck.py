"""Decks of slides as layouts: what stands where, what it looks like, and what is refused."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pptx import Presentation
from pptx.dml.color import RGBColor
from pptx.enum.dml import MSO_THEME_COLOR
from pptx.enum.shapes import MSO_SHAPE
from pptx.enum.text import MSO_ANCHOR, PP_ALIGN
from pptx.util import Inches, Pt

from producer.synthesize.blueprint import Placeholder, Shape, read_layouts
from producer.synthesize.deck import read_deck
from producer.synthesize.sample import SynthesisError
from producer.synthesize.wording import quote
from tests.unit.producer.test_template import template


def default_deck(path: Path) -> None:
    """python-pptx's own template: eleven layouts, no slide."""
    Presentation().save(str(path))


def own_deck(path: Path) -> None:
    """One slide of 10 x 7.5 inches: a dark ground, a bar in the theme's accent, a box of text, one in a group."""
    deck = Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    slide.background.fill.solid()
    slide.background.fill.fore_color.rgb = RGBColor(16, 32, 64)
    bar = slide.shapes.add_shape(MSO_SHAPE.ROUNDED_RECTANGLE, Inches(1), Inches(5), Inches(8), Inches(1.5))
    bar.fill.solid()
    bar.fill.fore_color.theme_color = MSO_THEME_COLOR.ACCENT_1
    box = slide.shapes.add_textbox(Inches(1), Inches(1), Inches(8), Inches(2))
    box.text_frame.vertical_anchor, box.text_frame.word_wrap = MSO_ANCHOR.BOTTOM, True
    words = box.text_frame.paragraphs[0]
    words.alignment = PP_ALIGN.RIGHT
    run = words.add_run()
    run.text, run.font.size, run.font.color.rgb = "在此输入标题", Pt(36), RGBColor(255, 204, 0)
    group = slide.shapes.add_group_shape()
    inner = group.shapes.add_textbox(Inches(2), Inches(3.5), Inches(4), Inches(1))
    inner.text_frame.text = "Add words here"
    turned = slide.shapes.add_textbox(Inches(1), Inches(3), Inches(3), Inches(1))
    turned.text_frame.text, turned.rotation = "Turned text", 30.0
    deck.save(str(path))


def test_a_slide_keeps_its_boxes_sizes_colours_and_alignment(tmp_path: Path) -> None:
    own_deck(tmp_path / "own.pptx")
    ((name, layout),) = read_deck(tmp_path / "own.pptx")
    bar, title, grouped = layout.elements
    assert (name, layout.aspect, layout.ground) == ("own#1", "4:3", "#102040")
    assert isinstance(bar, Shape) and bar.fill == "#4f81bd" and bar.radius > 0
    assert np.allclose(bar.box, (0.1, 5 / 7.5, 0.9, 6.5 / 7.5))
    assert isinstance(title, Placeholder) and isinstance(grouped, Placeholder)
    # Text stands inside the shape by its insets, a tenth and a twentieth of an inch.
    assert np.allclose(title.box, (0.11, 1.05 / 7.5, 0.89, 2.95 / 7.5))
    assert (title.role, title.ink, title.align, title.anchor) == ("title", "#ffcc00", "right", "bottom")
    assert title.size[1] == pytest.approx(0.5 / 7.5) and title.placeholder == "在此输入标题" and title.most == 7
    assert np.allclose(grouped.box, (0.21, 3.55 / 7.5, 0.59, 4.45 / 7.5)) and grouped.ink == "#000000"


def test_a_deck_without_slides_gives_its_layouts_with_what_they_inherit(tmp_path: Path) -> None:
    default_deck(tmp_path / "default.pptx")
    found = dict(read_deck(tmp_path / "default.pptx"))
    # All eleven but the one without text and the one whose title runs from top to bottom.
    assert len(found) == 9 and not {"default#Blank", "default#Vertical Title and Text"} & found.keys()
    roles = {
        name: [one.role for one in layout.elements if isinstance(one, Placeholder)] for name, layout in found.items()
    }
    assert roles["default#Title Slide"] == ["title", "subtitle"]
    assert roles["default#Two Content"][:4] == ["title", "first point", "second point", "third point"]
    title, subtitle = (one for one in found["default#Title Slide"].elements if isinstance(one, Placeholder))
    # 44 points from the master's title style, 32 from its body style, both centred, the subtitle lighter by a tint.
    assert title.size[1] == pytest.approx(44 / 540) and subtitle.size[1] == pytest.approx(32 / 540)
    assert (title.align, subtitle.align, title.ink) == ("center", "center", "#000000") and subtitle.ink > "#3"
    assert all(one.bullet for one in found["default#Two Content"].elements[1:] if isinstance(one, Placeholder))
    (panel,) = (one for one in found["default#Picture with Caption"].elements if isinstance(one, Shape))
    assert panel.fill == "#dbdbdb"


def test_placeholders_of_a_deck_are_replaced_where_they_stood(tmp_path: Path) -> None:
    decks = tmp_path / "decks"
    decks.mkdir()
    own_deck(decks / "own.pptx")
    default_deck(decks / "default.pptx")
    layouts, way = dict(read_layouts(decks)), template(tmp_path, layouts=decks)
    for index in range(12):
        made = way.make(index)
        layout = layouts[made.truth.setting]
        slots = [one for one in layout.elements if isinstance(one, Placeholder)]
        width, height = made.image.size
        for text in made.truth.texts:
            points = np.array([point for line in text.lines for point in line.outline])
            held = [
                one.placeholder
                for one in slots
                if one.role == text.role
                and (points >= (one.box[0] * width - 3, one.box[1] * height - 3)).all()
                and (points <= (one.box[2] * width + 3, one.box[3] * height + 3)).all()
            ]
            assert held and text.text not in held and quote(text.text) in made.caption
        if made.truth.setting == "own#1":
            assert made.image.getpixel((1, 1)) == (16, 32, 64) and "navy blue background with" in made.caption


def rewritten(path: Path, change: dict[str, bytes]) -> None:
    """The own deck at `path` with parts replaced or added."""
    own_deck(path)
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()} | change
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in parts.items():
            new.writestr(name, content)
    path.write_bytes(out.getvalue())


OUTSIDE = b"""<?xml version="1.0"?>
<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="rId1"
Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/slideLayout"
Target="../slideLayouts/slideLayout7.xml"/><Relationship Id="rId2" TargetMode="External"
Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/%s" Target="http://example.org/x"/>
</Relationships>"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ppt/slides/slide1.xml": bytes(300 << 20)}, "refused, ppt/slides/slide1.xml unfolds to 314572800 bytes"),
        ({f"ppt/media/{n}.png": bytes(90 << 20) for n in range(3)}, "refused, it unfolds to 28"),
        ({"ppt/slides/slide1.xml": b"<p:sld"}, "not a deck that can be read"),
        ({"ppt/presentation.xml": b""}, "not a deck that can be read"),
        ({"[Content_Types].xml": b"<Types/>"}, "not a deck that can be read"),
        ({"ppt/slides/_rels/slide1.xml.rels": OUTSIDE % b"image"}, "refused, parts of it lie elsewhere.*example.org"),
    ],
)
def test_a_deck_that_is_broken_or_an_attack_is_refused_with_the_reason(
    tmp_path: Path, change: dict[str, bytes], said: str
) -> None:
    rewritten(tmp_path / "bad.pptx", change)
    with pytest.raises(SynthesisError, match=rf"template\.folder: .*bad\.pptx: {said}"):
        read_layouts(tmp_path)


def test_links_to_click_are_no_reason_to_refuse_a_deck(tmp_path: Path) -> None:
    rewritten(tmp_path / "linked.pptx", {"ppt/slides/_rels/slide1.xml.rels": OUTSIDE % b"hyperlink"})
    assert len(read_layouts(tmp_path)) == 1


def test_entities_of_a_deck_are_not_unfolded(tmp_path: Path) -> None:
    own_deck(tmp_path / "deck.pptx")
    with zipfile.ZipFile(tmp_path / "deck.pptx") as deck:
        slide = deck.read("ppt/slides/slide1.xml").decode()
    secret = tmp_path / "secret"
    secret.write_text("SECRET WORDS OF THE MACHINE")
    head = f'<!DOCTYPE p:sld [<!ENTITY x SYSTEM "{secret.as_uri()}">]>'
    start = slide.index("<p:sld")
    slide = slide[:start] + head + slide[start:].replace("在此输入标题", "words &x; here")
    rewritten(tmp_path / "deck.pptx", {"ppt/slides/slide1.xml": slide.encode()})
    ((_, layout),) = read_layouts(tmp_path)
    assert not any("SECRET" in one.placeholder for one in layout.elements if isinstance(one, Placeholder))


def test_no_zip_and_a_deck_without_text_say_so(tmp_path: Path) -> None:
    (tmp_path / "none.pptx").write_bytes(b"no zip at all")
    with pytest.raises(SynthesisError, match=r"none\.pptx: not a \.pptx, which is a zip"):
        read_layouts(tmp_path)
    deck = Presentation()
    deck.slides.add_slide(deck.slide_layouts[6])
    deck.save(str(tmp_path / "none.pptx"))
    with pytest.raises(SynthesisError, match="none of its 1 slides has text to replace"):
        read_layouts(tmp_path)
