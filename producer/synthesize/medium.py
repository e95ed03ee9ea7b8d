"""What text is written on: sheets of paper, boards of wood, cloth and painted signs, drawn by procedure."""

from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from producer.synthesize.colour import PALETTE, Rgb
from producer.synthesize.wording import article

Pixels = np.ndarray[Any, np.dtype[np.float32]]  # [H, W, 3] or [H, W], RGB in [0, 1]
MediumKind = Literal["paper", "wood", "cloth", "sign"]
KINDS: tuple[MediumKind, ...] = ("paper", "wood", "cloth", "sign")


class Medium(NamedTuple):
    """A flat surface."""

    name: str  # as a caption says it
    chinese: str
    written: tuple[str, str]  # what was done to put text on it, in English and in Chinese
    surface: Pixels  # [H, W, 3]
    ground: Rgb  # its median colour, without a sign's edge, to choose an ink against
    bend: float  # how far it may curl, share of its height


def medium(kind: MediumKind, width: int, height: int, rng: np.random.Generator) -> Medium:
    """A surface of `kind`."""
    name, chinese, written, surface, bend = {"paper": _paper, "wood": _wood, "cloth": _cloth, "sign": _sign}[kind](
        width, height, rng
    )
    surface = np.clip(surface, 0, 1).astype(np.float32)
    red, green, blue = (round(float(value) * 255) for value in np.median(surface, (0, 1)))
    return Medium(name, chinese, written, surface, (red, green, blue), bend)


def smooth(width: int, height: int, across: float, down: float, rng: np.random.Generator) -> Pixels:
    """Noise of zero mean and unit deviation, smooth over `across` and `down` pixels."""
    small = max(2, round(height / down) + 2), max(2, round(width / across) + 2)
    grid = rng.standard_normal(small, np.float32)
    large = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    return (large - large.mean()) / max(float(large.std()), 1e-6)


_PRINTED, _PAINTED = ("printed", "印"), ("painted", "漆")
_Made = tuple[str, str, tuple[str, str], Pixels, float]


def _paper(width: int, height: int, rng: np.random.Generator) -> _Made:
    name, chinese, rgb = (
        ("white", "白", (246, 245, 240)),
        ("cream", "米黄色的", (242, 232, 206)),
        ("kraft", "牛皮", (196, 160, 116)),
    )[rng.integers(3)]
    fibre = 0.012 * smooth(width, height, 2, 2, rng) + 0.012 * smooth(width, height, 60, 60, rng)
    crease = np.zeros((height, width), np.float32)
    crumpled = rng.random() < 0.4
    for _ in range(int(rng.integers(5, 9)) if crumpled else 0):
        angle, along = rng.uniform(0, np.pi), rng.uniform(-0.4, 0.4)
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        far = (x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle) - along
        crease += np.tanh(far * 60).astype(np.float32) * np.exp(-np.abs(far) * 9).astype(np.float32) * 0.05
    said = f"a {'crumpled ' if crumpled else ''}sheet of {name} paper"
    said_zh = f"一张{'皱巴巴的' if crumpled else ''}{chinese}纸"
    return said, said_zh, _PRINTED, _tinted(rgb, 1 + fibre + crease), 0.04


def _wood(width: int, height: int, rng: np.random.Generator) -> _Made:
    name, chinese, rgb = (
        ("light", "浅色", (206, 166, 112)),
        ("brown", "棕色", (146, 98, 58)),
        ("dark", "深色", (84, 54, 36)),
    )[rng.integers(3)]
    rings = smooth(width, height, width / 2, 14, rng) + 0.5 * smooth(width, height, width / 3, 5, rng)
    grain = 0.5 + 0.5 * np.sin(rings * 4)
    fine = smooth(width, height, 40, 1.5, rng)
    surface = _tinted(rgb, 0.9 + 0.14 * grain + 0.03 * fine)
    return f"a {name} wooden board", f"一块{chinese}的木板", _PAINTED, surface, 0.0


def _cloth(width: int, height: int, rng: np.random.Generator) -> _Made:
    colour = PALETTE[rng.integers(len(PALETTE))]
    y, x = np.mgrid[0:height, 0:width]
    weave = 0.03 * (np.cos(x * np.pi / 1.5) * np.cos(y * np.pi / 1.5)).astype(np.float32)
    folds = 0.07 * smooth(width, height, width / 4, height * 2, rng)
    base = tuple(round(30 + value * 0.86) for value in colour.rgb)
    shade = 1 + weave + folds + 0.02 * smooth(width, height, 2, 2, rng)
    surface = _tinted((base[0], base[1], base[2]), shade)
    return f"a banner of {colour.name} cloth", f"一条{colour.chinese}的布幅", _PRINTED, surface, 0.06


def _sign(width: int, height: int, rng: np.random.Generator) -> _Made:
    colour = PALETTE[rng.integers(len(PALETTE))]
    surface = _tinted(colour.rgb, 1 + 0.015 * smooth(width, height, 80, 80, rng))
    inset, thick = round(min(width, height) * 0.03), max(2, round(min(width, height) * 0.015))
    edge = (0.96, 0.96, 0.96) if sum(colour.rgb) < 384 else (0.1, 0.1, 0.1)
    cv2.rectangle(surface, (inset, inset), (width - 1 - inset, height - 1 - inset), edge, thick, cv2.LINE_AA)
    return f"{article(colour.name)} metal sign", f"一块{colour.chinese}的金属牌", _PAINTED, surface, 0.0


def _tinted(rgb: Rgb, shade: Pixels) -> Pixels:
    return np.ascontiguousarray(np.asarray(rgb, np.float32) / 255 * shade[..., None], np.float32)
