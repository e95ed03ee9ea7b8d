"""Captions wrap under their pictures, in English and in Chinese."""

import numpy as np
import pytest
from PIL import ImageFont

from consumer.evaluate.grid import compose, find_font, wrap


@pytest.mark.parametrize(
    "text", ["An astronaut in an orange space suit smiles at the camera.", "红色背景上写着白色的字：“你好，世界”"]
)
def test_a_caption_wraps_within_the_width_and_loses_nothing(text: str) -> None:
    font = find_font()
    lines = wrap(text, 150, font)
    assert 1 < len(lines) <= 4
    assert all(font.getlength(line) <= 150 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_words_stay_whole_and_endless_ones_are_cut() -> None:
    font = find_font()
    assert all(line in "one two three four five six" for line in wrap("one two three four five six", 100, font))
    assert len(wrap("x" * 60, 100, font)) > 1


def test_a_long_caption_ends_in_dots() -> None:
    lines = wrap("word " * 200, 150, find_font())
    assert len(lines) == 4
    assert lines[-1].endswith("…")


def test_the_font_has_chinese_glyphs() -> None:
    """A missing glyph is drawn as the same box as any other missing one."""
    font = find_font()
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert bytes(font.getmask("你")) != bytes(font.getmask("好"))


def test_pictures_of_any_sizes_keep_their_pixels() -> None:
    pictures = [np.full((40, 30, 3), 10, np.uint8), np.full((20, 50, 3), 90, np.uint8), np.full((8, 8, 3), 7, np.uint8)]
    sheet = np.asarray(compose(pictures, ["a", "", "c"], 2, find_font()))
    for picture in pictures:
        assert (sheet == picture[0, 0]).all(-1).sum() == picture.shape[0] * picture.shape[1]
