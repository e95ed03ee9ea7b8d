"""Real photographs and known damage to them: what operators must keep and drop."""

import importlib.util
import io
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
from PIL import Image

from launch.photographs import PHOTOGRAPHS
from producer.operator.judgement import SIDE, Operator, OptIn, Sample
from producer.operator.stage import OPT_IN, OperatorsConfig, build_stage
from producer.scoring import look
from producer.source.shard import RawSample, Reader
from tests.unit.producer.damaged_marks import coded, labelled, lettered, plain

# With the view of small things.
STAGE = build_stage(OperatorsConfig.model_validate({"code": {}}))
# Not to be judged: moon.png shows the blocks of a JPEG that it was made from; two are of text, and an astronaut's badge
# and the name on a motorcycle have letters of 5 pixels at 256p.
EXCLUDED = {
    "compression": ("moon",),
    "intensive_text": ("page", "text"),
    "small_character": ("page", "text", "astronaut", "motorcycle"),
}
# Half of the photographs, with all their crops: thresholds may be chosen on the others and are judged on these.
HELD_OUT = ("camera", "coffee", "hubble", "moon", "brick", "gravel", "cell", "flower", "china", "text")

Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray | None]


class Row(NamedTuple):
    """Scores of a photograph whole and damaged, turned so that the higher is the better to keep."""

    held_out: bool
    good: float
    bad: float


def photographs() -> Iterator[tuple[str, np.ndarray]]:
    """Name and RGB of every photograph and of its crops."""
    for one in PHOTOGRAPHS:
        package, folder = one.package.split("/", 1)
        spec = importlib.util.find_spec(package)
        assert spec and spec.submodule_search_locations
        with Image.open(Path(spec.submodule_search_locations[0]) / folder / one.file) as image:
            pixels = np.asarray(image.convert("RGB"))
        yield one.file, pixels
        for number, crop in enumerate(one.crops):
            part = pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
            yield f"{one.file}-{number}", part


def jpeg(pixels: np.ndarray, quality: int = 90, orientation: int = 1) -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "JPEG", quality=quality, exif=exif)
    return out.getvalue()


def seen(content: bytes) -> Sample:
    """What operators see of an encoded picture, as in a run."""
    raw = RawSample("a/x", "a.tar", "x.jpg", 512, len(content), {"raw": "x"}, image=content)
    return look(cast(Reader, None), raw, STAGE)[1]


def scale(pixels: np.ndarray) -> float:
    """Pixels of the picture for one that operators see."""
    return max(1.0, max(pixels.shape[:2]) / SIDE)


def _small(pixels: np.ndarray) -> np.ndarray:
    height, width = (max(1, round(size / scale(pixels))) for size in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def blurred(radius: float) -> Damage:
    return lambda pixels, _: cv2.GaussianBlur(pixels, (0, 0), radius * scale(pixels))


def _light(pixels: np.ndarray, gain: float) -> np.ndarray:
    """`gain` times as much light, at gamma 2.2."""
    return (np.clip((pixels / 255.0) ** 2.2 * gain, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8)


def darkened(stops: int) -> Damage:
    return lambda pixels, _: _light(pixels, 2.0**-stops)


def burnt(share: float) -> Damage:
    """With so much light that `share` of the pixels are white; None of pictures with more black."""

    def damage(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray | None:
        least = np.quantile(pixels.min(axis=2), 1 - share, method="lower")
        return _light(pixels, (255 / least) ** 2.2) if least else None

    return damage


def vivid(share: float) -> Damage:
    """With saturation multiplied until `share` of the lit pixels are full; None of grey and of dark pictures."""

    def damage(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray | None:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV).astype(np.float32)
        lit = hsv[..., 1][hsv[..., 2] >= 96]
        if lit.size < 0.75 * pixels[..., 0].size or np.quantile(lit, 1 - share) < 25:
            return None
        hsv[..., 1] = np.minimum(255, hsv[..., 1] * 255 / np.quantile(lit, 1 - share))
        return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)

    return damage


def painted(share: float) -> Damage:
    def damage(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
        flat = pixels.copy()
        flat[: int(share * len(flat))] = pixels[0, 0]
        return flat

    return damage


def drowned(share: float) -> Damage:
    """Mixed with white noise."""

    def damage(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        small = _small(pixels)
        return (small * (1 - share) + share * rng.integers(0, 256, small.shape)).astype(np.uint8)

    return damage


def noisy(levels: float) -> Damage:
    return lambda pixels, rng: np.clip(pixels + rng.normal(0, levels, pixels.shape), 0, 255).astype(np.uint8)


def mosaic(cell: int, side: int | None) -> Damage:
    """Cells of `cell` pixels as operators see them, all over or in a square of `side`: of eight that with most to hide.
    None where that changes pixels by less than 2 levels on average: nobody could see it, as in an evening sky.
    """

    def damage(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        height, width = pixels.shape[:2]
        size, edge = max(2, round(cell * scale(pixels))), round((side or 0) * scale(pixels))
        tall, wide = (min(edge, height), min(edge, width)) if side else (height, width)
        places = [(rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)) for _ in range(8)]
        top, left = max(places, key=lambda at: pixels[at[0] : at[0] + tall, at[1] : at[1] + wide].std())
        hidden = pixels.copy()
        box = hidden[top : top + tall // size * size, left : left + wide // size * size]
        cells = cv2.resize(box, (wide // size, tall // size), interpolation=cv2.INTER_AREA)
        cells = np.repeat(np.repeat(cells, size, 0), size, 1)
        changed = np.abs(cells.astype(np.int16) - box).mean()
        box[:] = cells
        return hidden if changed >= 2 else None

    return damage


DAMAGES: dict[str, tuple[Damage, ...]] = {
    "clarity": (blurred(3), blurred(5)),
    "underexposure": (darkened(5), darkened(6)),
    "overexposure": (burnt(0.85), burnt(0.95)),
    "saturation": (vivid(0.4), vivid(0.6)),
    "entropy": (painted(0.95), painted(0.97)),
    "texture": (drowned(0.7), drowned(0.85)),
    "noise": (noisy(25), noisy(40)),
    "mosaic": (mosaic(8, None), mosaic(12, 160), mosaic(16, None), mosaic(10, 160)),
    "compression": (lambda pixels, _: pixels,),
    "rotation": (lambda pixels, _: pixels,),
    "code": (coded(0.12), coded(0.3), coded(0.2)),
    "intensive_text": (lettered(18, 1.0, 1.3), lettered(14, 1.0, 1.5)),
    "small_character": (lettered(5, 0.1), lettered(4, 0.1), lettered(6, 0.15)),
}
READ = ("intensive_text", "small_character")
# What is done to the photographs that are to be kept, where that is not nothing.
SPARED: dict[str, tuple[Damage, ...]] = {
    "code": (labelled, plain),
    "intensive_text": (lettered(14, 0.2), lettered(16, 0.35), plain),
    "small_character": (lettered(11, 0.1), lettered(16, 0.15), lettered(12, 0.2)),
}


def pairs(name: str, every: int = 1) -> Iterator[tuple[str, Sample, Sample]]:
    """Of every `every`-th photograph its name, itself and it damaged in one of the ways for operator `name`."""
    for number, (photograph, pixels) in enumerate(photographs()):
        if number % every or photograph.startswith(EXCLUDED.get(name, ())):
            continue
        damages = DAMAGES[name]
        step = number // every
        bad = damages[step % len(damages)](pixels, np.random.default_rng(number))
        if bad is None:
            continue
        good_quality, bad_quality = ((90, 75)[step % 2], (10, 5)[step % 2]) if name == "compression" else (90, 90)
        orientation = 2 + step % 7 if name == "rotation" else 1
        spared = SPARED.get(name, (lambda pixels, _: pixels,))
        good = spared[step % len(spared)](pixels, np.random.default_rng(number))
        assert good is not None
        yield photograph, seen(jpeg(good, good_quality)), seen(jpeg(bad, bad_quality, orientation))


def scored(name: str) -> list[Row]:
    """Every pair's scores by operator `name`; of every third photograph where text is read, which takes seconds."""
    operator = cast(Operator, OPT_IN[name]().operator())
    sign = 1 if "min" in OPT_IN[name].model_fields else -1
    rows = []
    # One by one: a batch of all would hold all pictures.
    for photograph, good, bad in pairs(name, 3 if name in READ else 1):
        values = [score.value for score in operator.score([good, bad])]
        # What was not judged is kept.
        kept = [math.inf if value is None else sign * value for value in values]
        rows.append(Row(photograph.startswith(HELD_OUT), *kept))
    return rows


def default_bound(name: str) -> float:
    """The default threshold of operator `name`, on its scores as `scored` has them."""
    settings = OPT_IN[name]().model_dump()
    return settings["min"] / settings.get("resolution", 1) if "min" in settings else -settings["max"]


def precision_and_recall(rows: list[Row], bound: float) -> tuple[float, float]:
    """Of dropping what scores below `bound`."""
    wrong, right = sum(row.good < bound for row in rows), sum(row.bad < bound for row in rows)
    return right / max(1, right + wrong), right / max(1, len(rows))


def choose(rows: list[Row]) -> float:
    """The bound on the scores of `rows` of the best precision or recall, whichever is worse; of many the middle."""
    values = sorted({value for row in rows for value in row[1:] if math.isfinite(value)})
    between = [(low + high) / 2 for low, high in itertools.pairwise(values)]
    best = max(min(precision_and_recall(rows, bound)) for bound in between)
    good = [bound for bound in between if min(precision_and_recall(rows, bound)) == best]
    return (good[0] + good[-1]) / 2


def judge(name: str, samples: list[Sample]) -> list[Any]:
    """Judgements by operator `name` at its default threshold."""
    kind: type[OptIn] = OPT_IN[name]
    operator = cast(Operator, kind().operator())
    return [operator.judge(score) for score in operator.score(samples)]
