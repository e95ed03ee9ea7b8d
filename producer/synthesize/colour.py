"""Colours that have names, and pairs of them that can be read."""

from typing import NamedTuple

import numpy as np

Rgb = tuple[int, int, int]


class Colour(NamedTuple):
    """A colour and what a caption calls it."""

    name: str
    rgb: Rgb
    chinese: str


PALETTE = tuple(
    Colour(name, rgb, chinese)
    for (name, chinese), rgb in {
        ("white", "白色"): (255, 255, 255),
        ("ivory", "象牙色"): (250, 245, 228),
        ("light gray", "浅灰色"): (214, 214, 210),
        ("gray", "灰色"): (128, 128, 128),
        ("dark gray", "深灰色"): (64, 66, 70),
        ("black", "黑色"): (14, 14, 16),
        ("red", "红色"): (198, 32, 40),
        ("dark red", "深红色"): (122, 18, 28),
        ("pink", "粉色"): (246, 182, 198),
        ("orange", "橙色"): (238, 128, 34),
        ("brown", "棕色"): (96, 60, 34),
        ("beige", "米色"): (226, 206, 170),
        ("yellow", "黄色"): (250, 214, 56),
        ("green", "绿色"): (34, 132, 68),
        ("dark green", "深绿色"): (18, 72, 44),
        ("light green", "浅绿色"): (186, 226, 176),
        ("teal", "青色"): (0, 116, 122),
        ("light blue", "浅蓝色"): (174, 212, 240),
        ("blue", "蓝色"): (34, 88, 190),
        ("navy blue", "藏青色"): (18, 32, 84),
        ("purple", "紫色"): (104, 44, 140),
    }.items()
)


def nearest(rgb: Rgb) -> Colour:
    """`rgb` itself with the name of the colour that looks most like it (redmean, a weighted distance in RGB)."""

    def far(colour: Colour) -> float:
        red, green, blue = (a - b for a, b in zip(rgb, colour.rgb, strict=True))
        warm = (rgb[0] + colour.rgb[0]) / 2
        return (2 + warm / 256) * red * red + 4 * green * green + (2 + (255 - warm) / 256) * blue * blue

    return min(PALETTE, key=far)._replace(rgb=rgb)


def luminance(rgb: Rgb) -> float:
    """Relative luminance in [0, 1] (WCAG 2.2)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Rgb, other: Rgb) -> float:
    """Contrast ratio in [1, 21] (WCAG 2.2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def ground_and_ink(rng: np.random.Generator, least: float) -> tuple[Colour, Colour]:
    """Two colours at a contrast of at least `least`, at most 7 so that every ground has an ink."""
    ground = PALETTE[rng.integers(len(PALETTE))]
    return ground, ink_on(ground.rgb, rng, least)


def ink_on(ground: Rgb, rng: np.random.Generator, least: float) -> Colour:
    """A colour that can be read on `ground`; the one that is read best where none reaches `least`."""
    inks = [colour for colour in PALETTE if contrast(ground, colour.rgb) >= least]
    return inks[rng.integers(len(inks))] if inks else max(PALETTE, key=lambda c: contrast(ground, c.rgb))
