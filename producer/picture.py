"""Encoded image bytes to pixels, guarded: limits on bytes and pixels before any decoding, and never half a picture."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from producer.api.bucket import Bucket
from producer.quiet import quiet

# What is tried at all: decoders that are fuzzed and common. Everything else is refused whatever its extension says.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

_ORIENTATION = 0x0112  # EXIF tag
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(ValueError):
    """The bytes are not a whole picture within the limits; the message is the reason to store."""


class Limits(NamedTuple):
    """What one picture may cost."""

    bytes: int = 64 << 20
    pixels: int = 64_000_000  # below Pillow's own 89 million; 192 MB as RGB


_LIMITS = Limits()


def decode(raw: bytes, limits: Limits = _LIMITS) -> Image.Image:
    """The whole picture in `raw` as RGB, turned upright by EXIF, transparency over white; of an animation the first
    frame. PictureError says why not.
    """
    if not raw:
        raise PictureError("empty file")
    if len(raw) > limits.bytes:
        raise PictureError(f"{len(raw)} bytes, the limit is {limits.bytes}")
    # Pillow warns of odd metadata, which is no fault of the pixels, and of bombs, which our own limit catches first.
    with quiet():
        try:
            with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
                width, height = image.size
                if width * height > limits.pixels:
                    raise PictureError(f"{width}x{height} pixels, the limit is {limits.pixels} in all")
                image.load()
                return _upright(image, _rgb(image))
        except UnidentifiedImageError:
            raise PictureError("not an image of a known format") from None
        except PictureError:
            raise
        except Exception as error:
            # On malformed input decoders raise nearly anything: OSError, SyntaxError, struct.error, IndexError, ...
            raise PictureError(f"does not decode: {str(error) or type(error).__name__}") from None


def fit(picture: Image.Image, bucket: Bucket) -> np.ndarray:
    """`picture` as uint8 [height, width, 3] of the bucket's size: scaled to cover it (Lanczos), its centre kept."""
    width, height = picture.size
    scale = max(bucket.width / width, bucket.height / height)
    across, down = min(width, bucket.width / scale), min(height, bucket.height / scale)
    left, top = (width - across) / 2, (height - down) / 2
    box = (left, top, min(width, left + across), min(height, top + down))
    return np.asarray(picture.resize((bucket.width, bucket.height), Image.Resampling.LANCZOS, box=box))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion clips at 255 instead of scaling.
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    return image.convert("RGB")


def _upright(encoded: Image.Image, picture: Image.Image) -> Image.Image:
    try:
        turn = _TURN.get(encoded.getexif().get(_ORIENTATION, 1))
    except Exception:
        # Unreadable EXIF says nothing of the orientation; the pixels are whole.
        turn = None
    return picture if turn is None else picture.transpose(turn)
