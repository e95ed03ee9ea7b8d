"""Slides and mock-ups: every placeholder replaced, the layout kept, the same bytes again."""

import json
from pathlib import Path

import numpy as np
import pytest

from producer.synthesize.blueprint import Placeholder, read_layouts
from producer.synthesize.colour import contrast
from producer.synthesize.sample import SynthesisError
from producer.synthesize.template import _UNDER, Template, TemplateConfig, _Theme
from producer.synthesize.wording import quote
from tests.unit.producer.lettering import corpus, fonts

LAYOUTS = Path(__file__).parents[3] / "launch" / "configs" / "layouts"


def template(folder: Path, seed: int = 0, layouts: Path = LAYOUTS, **settings: object) -> Template:
    faces = fonts()
    config = TemplateConfig.model_validate({"folder": layouts, "resolution": 512} | settings)
    return Template(config, corpus(folder, faces), faces, seed)


def test_every_placeholder_is_replaced_in_its_own_box(tmp_path: Path) -> None:
    way, seen, layouts = template(tmp_path), set(), dict(read_layouts(LAYOUTS))
    for index in range(40):
        made = way.make(index)
        seen.add(made.truth.setting)
        slots = [element for element in layouts[made.truth.setting].elements if isinstance(element, Placeholder)]
        assert [text.role for text in made.truth.texts] == [slot.role for slot in slots]
        width, height = made.image.size
        for slot, text in zip(slots, made.truth.texts, strict=True):
            assert slot.placeholder != text.text and f"reads {quote(text.text)}" in made.caption
            left, top, right, bottom = slot.box
            points = np.array([point for line in text.lines for point in line.outline])
            # A glyph may overhang its advance by a pixel or two.
            assert (points >= (left * width - 3, top * height - 3)).all()
            assert (points <= (right * width + 3, bottom * height + 3)).all()
            x, y = points.min(0).astype(int)
            x1, y1 = points.max(0).astype(int)
            assert (np.asarray(made.image)[y:y1, x:x1] == text.ink_rgb).all(-1).any()
    assert seen == set(layouts) and "slides#1" in seen


def test_every_ink_of_a_theme_can_be_read() -> None:
    for seed in range(300):
        theme = _Theme(np.random.default_rng(seed), 3.0)
        fills, inks = theme.fills, theme.inks
        assert len(set(fills.values())) == 4
        assert min(contrast(inks[ink].rgb, fills[under].rgb) for ink, under in _UNDER.items()) >= 3.0


def test_a_template_follows_from_seed_and_index_alone(tmp_path: Path) -> None:
    one, again = template(tmp_path), template(tmp_path)
    forward = [one.make(n) for n in range(3)]
    backward = [again.make(n) for n in (2, 1, 0)][::-1]
    assert [(s.image.tobytes(), s.caption, s.truth) for s in forward] == [
        (s.image.tobytes(), s.caption, s.truth) for s in backward
    ]
    assert template(tmp_path, seed=1).make(0).image.tobytes() != forward[0].image.tobytes()


SLOT = {
    "type": "text",
    "role": "title",
    "box": [0.1, 0.1, 0.9, 0.2],
    "placeholder": "x",
    "size": [0.05, 0.1],
    "most": 8,
}


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("{", "Invalid JSON"),
        ({"kind": "slide", "aspect": "1:1", "elements": []}, "elements: Tuple should have at least 1"),
        ({"kind": "slide", "aspect": "wide", "elements": [SLOT]}, "aspect: String should match"),
        (
            {"kind": "slide", "aspect": "1:1", "elements": [SLOT | {"box": [0.9, 0.1, 0.1, 0.2]}]},
            r"elements\.0\.box.*empty",
        ),
        ({"kind": "slide", "aspect": "1:1", "elements": [SLOT | {"box": [0.9, 0.1, 1.1, 0.2]}]}, "leaves the canvas"),
        (
            {"kind": "slide", "aspect": "1:1", "elements": [{"type": "rect", "box": [0, 0, 1, 1], "fill": "panel"}]},
            "no placeholder",
        ),
        ({"kind": "slide", "aspect": "1:1", "elements": [SLOT | {"colour": "red"}]}, "colour: Extra inputs"),
    ],
)
def test_a_layout_that_is_wrong_is_named_with_what_is(tmp_path: Path, layout: object, said: str) -> None:
    (tmp_path / "wrong.json").write_text(layout if isinstance(layout, str) else json.dumps(layout))
    with pytest.raises(SynthesisError, match=rf"template\.folder: .*wrong\.json: .*{said}"):
        template(tmp_path, layouts=tmp_path)


def test_missing_layouts_and_boxes_too_small_say_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(SynthesisError, match="absent is no folder"):
        template(tmp_path, layouts=tmp_path / "absent")
    (tmp_path / "none").mkdir()
    with pytest.raises(SynthesisError, match=r"holds no \.json and no \.pptx"):
        template(tmp_path, layouts=tmp_path / "none")
    tiny = SLOT | {"box": [0.1, 0.1, 0.12, 0.11]}
    (tmp_path / "tiny.json").write_text(json.dumps({"kind": "slide", "aspect": "1:1", "elements": [tiny]}))
    with pytest.raises(SynthesisError, match=r"tiny\.json: title: 20 texts of up to 8 characters do not fit"):
        template(tmp_path, layouts=tmp_path).make(0)
