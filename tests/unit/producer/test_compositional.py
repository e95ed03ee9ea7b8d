"""Text on paper, wood, cloth and signs in a scene: where the truth says, readable, the same bytes again."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from producer.synthesize.backdrop import BackdropConfig, Backdrops
from producer.synthesize.compositional import Compositional, CompositionalConfig
from producer.synthesize.medium import KINDS, medium
from producer.synthesize.sample import SynthesisError
from producer.synthesize.wording import quote, region
from tests.unit.producer.lettering import corpus, fonts


def compositional(folder: Path, seed: int = 0, **settings: object) -> Compositional:
    faces = fonts()
    config = CompositionalConfig.model_validate(
        {"resolution": 256, "least_size": 12, "chinese_captions": 0.0} | settings
    )
    return Compositional(config, corpus(folder, faces), faces, seed)


def test_the_truth_says_where_the_lines_lie(tmp_path: Path) -> None:
    way = compositional(tmp_path)
    for index in range(8):
        made = way.make(index)
        (text,) = made.truth.texts
        assert "".join(line.text for line in text.lines).replace(" ", "") == text.text.replace(" ", "")
        assert quote(text.text) in made.caption and text.ground in made.caption and text.ink in made.caption
        pixels = np.asarray(made.image, np.float32)
        for line in text.lines:
            points = np.array(line.outline, np.float32)
            assert (points >= 0).all() and (points < made.image.size).all()
            inside = np.zeros(pixels.shape[:2], np.uint8)
            cv2.fillPoly(inside, [points.round().astype(np.int32)], 1)
            # Both ink and ground within: the darkest and brightest tenths differ far more than texture and grain.
            grey = np.sort(pixels.mean(-1)[inside > 0])
            tenth = len(grey) // 10
            assert grey[-tenth:].mean() - grey[:tenth].mean() > 25


def test_a_scene_follows_from_seed_and_index_alone(tmp_path: Path) -> None:
    one, again = compositional(tmp_path), compositional(tmp_path)
    forward = [one.make(n) for n in range(3)]
    backward = [again.make(n) for n in (2, 1, 0)][::-1]
    assert [(s.image.tobytes(), s.caption, s.truth) for s in forward] == [
        (s.image.tobytes(), s.caption, s.truth) for s in backward
    ]
    assert compositional(tmp_path, seed=1).make(0).image.tobytes() != forward[0].image.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_medium_has_texture_about_the_colour_it_states(kind: str) -> None:
    assert kind in KINDS
    made = medium(kind, 200, 120, np.random.default_rng(3))
    assert made.surface.shape == (120, 200, 3) and made.surface.min() >= 0 and made.surface.max() <= 1
    assert made.surface.std((0, 1)).max() > 0.005
    assert np.allclose(np.median(made.surface, (0, 1)) * 255, made.ground, atol=1)


def test_a_photograph_lies_behind_and_its_caption_is_told(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (90, 60), (10, 200, 30)).save(tmp_path / "photos" / "lawn.png")
    (tmp_path / "photos" / "lawn.txt").write_text("A mown lawn.\n")
    made = compositional(tmp_path, backdrop={"folder": tmp_path / "photos", "procedural": 0.0}).make(0)
    assert "a photographed scene (A mown lawn)" in made.caption
    corner = np.asarray(made.image, int)[2, 2]
    assert corner[1] > 3 * corner[0] and corner[1] > 2 * corner[2]


@pytest.mark.parametrize("said", [b"a\0lawn", b"\x1b[2Ja lawn", b"\xff\xfe", b"lawn " * 20_000])
def test_what_no_caption_may_hold_is_not_told_of_a_photograph(tmp_path: Path, said: bytes) -> None:
    Image.new("RGB", (90, 60), (10, 200, 30)).save(tmp_path / "lawn.png")
    (tmp_path / "lawn.txt").write_bytes(said)
    drawn = Backdrops(BackdropConfig(folder=tmp_path, procedural=0.0)).draw(64, 64, np.random.default_rng(0))
    assert drawn.name == "in front of a photographed scene"


def test_places_have_words() -> None:
    assert [region(x, y) for x, y in ((0.5, 0.5), (0.2, 0.5), (0.9, 0.1), (0.5, 0.9))] == [
        "center",
        "center-left",
        "top-right",
        "bottom",
    ]
    assert [region(x, y, "zh") for x, y in ((0.5, 0.5), (0.2, 0.5), (0.9, 0.1), (0.5, 0.9))] == [
        "中央",
        "中央偏左处",
        "右上方",
        "下方",
    ]


def test_a_scene_can_be_told_in_chinese(tmp_path: Path) -> None:
    made = compositional(tmp_path, chinese_captions=1.0).make(0)
    (text,) = made.truth.texts
    assert made.caption.startswith("画面") and quote(text.text, "zh") in made.caption and "着" in made.caption
    assert text.ground not in made.caption and text.ink not in made.caption


def test_backgrounds_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    with pytest.raises(SynthesisError, match=r"backdrop\.folder: .*absent is no folder"):
        Backdrops(BackdropConfig(folder=tmp_path / "absent"))
    with pytest.raises(SynthesisError, match=r"holds no \.jpg"):
        Backdrops(BackdropConfig(folder=tmp_path))
    (tmp_path / "half.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    with pytest.raises(SynthesisError, match=r"half\.jpg: cannot be read"):
        compositional(tmp_path, backdrop={"folder": tmp_path, "procedural": 0.0}).make(0)


def test_text_that_fits_no_medium_says_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(SynthesisError, match=r"compositional\.least_size: 20 texts"):
        compositional(tmp_path, least_size=90).make(0)
