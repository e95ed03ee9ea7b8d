"""Colours that have names, and pairs of them that can be read."""

from typing import NamedTuple

import numpy as np

Rgb = tuple[int, int, int]


class Colour(NamedTuple):
    """A colour and what a caption calls it."""

    name: str
    rgb: Rgb


PALETTE = tuple(
    Colour(name, rgb)
    for name, rgb in {
        "white": (255, 255, 255),
        "ivory": (250, 245, 228),
        "light gray": (214, 214, 210),
        "gray": (128, 128, 128),
        "dark gray": (64, 66, 70),
        "black": (14, 14, 16),
        "red": (198, 32, 40),
        "dark red": (122, 18, 28),
        "pink": (246, 182, 198),
        "orange": (238, 128, 34),
        "brown": (96, 60, 34),
        "beige": (226, 206, 170),
        "yellow": (250, 214, 56),
        "green": (34, 132, 68),
        "dark green": (18, 72, 44),
        "light green": (186, 226, 176),
        "teal": (0, 116, 122),
        "light blue": (174, 212, 240),
        "blue": (34, 88, 190),
        "navy blue": (18, 32, 84),
        "purple": (104, 44, 140),
    }.items()
)


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
