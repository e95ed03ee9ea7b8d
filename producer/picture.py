"""Encoded image bytes to pixels, guarded: limits on bytes and pixels before any decoding, and never half a picture."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from producer.api.bucket import Bucket
from producer.quiet import quiet

# What is tried at all: decoders that are fuzzed and common. Everything else is refused whatever its extension says.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# Their decoders hold a picture several times: 64 million pixels took 731 MiB, where others need less than 400.
_DEAR = ("WEBP", "AVIF")
# A progressive JPEG as encoders write it has ten scans or so.
_USUAL_SCANS = 12
_BAND = 1 << 21  # pixels converted at a time
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
    return decode_turned(raw, limits)[0]


def decode_turned(raw: bytes, limits: Limits = _LIMITS) -> tuple[Image.Image, int]:
    """As `decode`, and the EXIF orientation it was turned by, 1 to 8; 1 where there is none."""
    if not raw:
        raise PictureError("empty file")
    if len(raw) > limits.bytes:
        raise PictureError(f"{len(raw)} bytes, the limit is {limits.bytes}")
    # Pillow warns of odd metadata, which is no fault of the pixels, and of bombs, which our own limit catches first.
    with quiet():
        try:
            with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
                return _whole(image, raw, limits)
        except UnidentifiedImageError:
            raise PictureError("not an image of a known format") from None
        except Image.DecompressionBombError:
            raise PictureError(f"more pixels than Pillow opens, the limit is {limits.pixels} in all") from None
        except PictureError:
            raise
        except Exception as error:
            # On malformed input decoders raise nearly anything: OSError, SyntaxError, struct.error, IndexError, ...
            raise PictureError(f"does not decode: {str(error) or type(error).__name__}") from None


def _whole(image: Image.Image, raw: bytes, limits: Limits) -> tuple[Image.Image, int]:
    width, height = image.size
    most = limits.pixels // 2 if image.format in _DEAR else limits.pixels
    if width * height > most:
        raise PictureError(f"{width}x{height} pixels, the limit is {most} in all")
    if image.format == "JPEG":
        scans = _scans(raw)
        if scans > 1 and scans * width * height > limits.pixels * _USUAL_SCANS:
            raise PictureError(f"{scans} scans of {width}x{height} pixels, {_USUAL_SCANS} of the largest are the limit")
    image.load()
    if image.size != (width, height):
        raise PictureError(f"says {width}x{height} pixels and has {image.size[0]}x{image.size[1]}")
    orientation = _orientation(image)
    picture = _rgb(image)
    return (picture if orientation == 1 else picture.transpose(_TURN[orientation])), orientation


def _scans(raw: bytes) -> int:
    """How many scans a JPEG has. Each one goes over all pixels, and a few bytes are enough for one (libjpeg-turbo's
    report on "two issues with the JPEG standard", 2012).
    """
    return raw.count(b"\xff\xda")


def fit(picture: Image.Image, bucket: Bucket) -> np.ndarray:
    """`picture` as uint8 [height, width, 3] of the bucket's size: scaled to cover it (Lanczos), its centre kept."""
    width, height = picture.size
    scale = max(bucket.width / width, bucket.height / height)
    across, down = min(width, bucket.width / scale), min(height, bucket.height / scale)
    left, top = (width - across) / 2, (height - down) / 2
    box = (left, top, min(width, left + across), min(height, top + down))
    return np.asarray(picture.resize((bucket.width, bucket.height), Image.Resampling.LANCZOS, box=box))


def _rgb(image: Image.Image) -> Image.Image:
    """`image`, which is given up for it, as RGB. What needs copies on the way is done in bands, so that the largest
    picture within the limits costs its two ends at most.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image.copy() if image.readonly else image
    clear = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    if not clear and not image.mode.startswith("I"):
        return image.convert("RGB")
    width, height = image.size
    picture = Image.new("RGB", image.size)
    for top in range(0, height, rows := max(1, _BAND // width)):
        band = image.crop((0, top, width, min(height, top + rows)))
        if clear:
            band.info = image.info
            band = band.convert("RGBA")
            picture.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB"), (0, top))
        else:
            # Pillow's own conversion clips at 255 instead of scaling.
            levels = np.asarray(band).clip(0, 65535) // 257
            picture.paste(Image.fromarray(levels.astype(np.uint8)).convert("RGB"), (0, top))
    return picture


def _orientation(encoded: Image.Image) -> int:
    try:
        said = encoded.getexif().get(_ORIENTATION, 1)
        return said if said in _TURN else 1
    except Exception:
        # Unreadable EXIF says nothing of the orientation; the pixels are whole.
        return 1
