"""Photographs with marks on them: text of known size and extent, codes, and labels that are neither."""

from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
import zxingcpp
from PIL import Image, ImageDraw, ImageFont

from tests.unit.producer.lettering import package_fonts

Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray | None]
SCAN = 1024  # pixels of the longest side of what a crawl finds
_LATIN = (
    "The quick brown fox jumps over the lazy dog, while the cat who was asleep did not notice at all. Opening hours "
    "are Monday to Friday from nine to five, except on public holidays, when the museum stays closed all day long. "
)
_CHINESE = "床前明月光，疑是地上霜。举头望明月，低头思故乡。博物馆周一至周五上午九点开放，节假日全天闭馆，欢迎参观。"
# Not PDF417, which is read in 18 of 48 where it is turned by up to 15 degrees.
_CODES = ("QRCode", "Code128", "EAN13", "DataMatrix", "Aztec")
_CONTENT = {"EAN13": "4006381333931", "Code128": "INK-20261127"}


@cache
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(package_fonts() / "SimHei.ttf"), pixels)


def scanned(pixels: np.ndarray) -> np.ndarray:
    """The photograph with SCAN pixels on its longest side."""
    by = SCAN / max(pixels.shape[:2])
    return cv2.resize(pixels, None, fx=by, fy=by, interpolation=cv2.INTER_AREA if by < 1 else cv2.INTER_CUBIC)


def plain(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return scanned(pixels)


def lettered(em: float, down: float, leading: float = 1.4) -> Damage:
    """Set with black or white text, Latin or Chinese, of `em` 256ths of the square root of its area, over its full
    width and `down` of its height.
    """

    def damage(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        large = scanned(pixels)
        height, width = large.shape[:2]
        size = max(6, round(em / 256 * (height * width) ** 0.5))
        step = size * leading
        lines = max(1, int(down * height / step))
        text = (_CHINESE if rng.integers(2) else _LATIN) * 99
        top = rng.uniform(0, max(1.0, height - lines * step))
        image = Image.fromarray(large)
        band = large[int(top) : int(top + lines * step) + 1]
        # Faded towards the paper that it is printed on, as on posters: ink on plain texture is nobody's intent.
        dark = band.mean() > 127
        veil = Image.new("RGB", image.size, "white" if dark else "black")
        box = (0, int(top), width, min(height, int(top + lines * step) + size // 2))
        image.paste(Image.blend(image, veil, 0.6).crop(box), box)
        canvas = ImageDraw.Draw(image)
        start = 0
        for line in range(lines):
            ends = start + 1
            while _font(size).getlength(text[start:ends]) < width - 2 * size:
                ends += 1
            canvas.text((size, top + line * step), text[start : ends - 1], "black" if dark else "white", _font(size))
            start = ends - 1
        return np.asarray(image)

    return damage


def coded(share: float) -> Damage:
    """With a code of some kind, `share` of the square root of the area wide, turned by up to 15 degrees and sometimes a
    quarter more; printed in a dark colour on a light one.
    """

    def damage(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        large = scanned(pixels)
        kind = _CODES[rng.integers(len(_CODES))]
        code = zxingcpp.create_barcode(_CONTENT.get(kind, "https://example.org/inkstone"), zxingcpp.BarcodeFormat[kind])
        print_ = np.asarray(zxingcpp.write_barcode_to_image(code, scale=4)).astype(np.float32)
        ink, paper = rng.uniform(0, 60, 3), rng.uniform(200, 255, 3)
        label = ink + print_[..., None] / 255 * (paper - ink)
        # Three pixels a module at least: a scan that shows fewer is legible to nobody.
        across = max(share * (large.shape[0] * large.shape[1]) ** 0.5, print_.shape[1] / 4 * 3)
        return _pasted(large, label, across, rng)

    return damage


def labelled(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With a label that is no code: a chequered or a striped one, or text."""
    label = np.full((160, 240, 3), 245.0, np.float32)
    kind = rng.integers(3)
    if kind == 0:
        label[16:-16, 16:-16] = np.indices((128, 208)).sum(0)[..., None] // 16 % 2 * 230.0
    elif kind == 1:
        label[16:-16, 16:-16] = (np.arange(208) // 8 % 2 * 230.0)[:, None]
    else:
        image = Image.fromarray(label.astype(np.uint8))
        for line in range(5):
            ImageDraw.Draw(image).text((12, 8 + 30 * line), _LATIN[line * 18 : line * 18 + 18], "black", _font(22))
        label = np.asarray(image).astype(np.float32)
    large = scanned(pixels)
    return _pasted(large, label, 0.3 * (large.shape[0] * large.shape[1]) ** 0.5, rng)


def _pasted(large: np.ndarray, label: np.ndarray, across: float, rng: np.random.Generator) -> np.ndarray:
    height, width = large.shape[:2]
    by = min(across / label.shape[1], 0.6 * min(height, width) / max(label.shape[:2]))
    angle = rng.uniform(-15, 15) + 90 * rng.integers(2)
    turn = cv2.getRotationMatrix2D((label.shape[1] / 2, label.shape[0] / 2), angle, by)
    reach = 0.5 * by * np.hypot(*label.shape[:2])
    centre = [rng.uniform(min(reach, size / 2), max(size - reach, size / 2)) for size in (width, height)]
    turn[:, 2] += np.asarray(centre) - (label.shape[1] / 2, label.shape[0] / 2)
    flags = cv2.INTER_AREA if by < 1 else cv2.INTER_LINEAR
    mask = cv2.warpAffine(np.ones(label.shape[:2], np.float32), turn, (width, height), flags=flags)[..., None]
    over = cv2.warpAffine(label.astype(np.float32), turn, (width, height), flags=flags)
    return np.clip(large * (1 - mask) + over * mask, 0, 255).astype(np.uint8)
