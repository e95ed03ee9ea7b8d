"""Bytes to pixels: every kind of picture comes out upright as RGB, and what is broken or too large says why."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from producer.api.bucket import Bucket
from producer.picture import Limits, PictureError, decode, fit


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)  # type: ignore[arg-type]
    return out.getvalue()


def quarters(mode: str = "RGB") -> Image.Image:
    """Red, green over blue, white: 8 pixels wide, 4 high."""
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:2, :4], pixels[:2, 4:], pixels[2:, :4], pixels[2:, 4:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(orientation: int) -> None:
    """The stored picture is turned the other way first, so that all eight show the same."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = quarters() if orientation == 1 else quarters().transpose(turns[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(decode(encoded(stored, exif=exif))), np.asarray(quarters()))


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK"])
def test_palettes_alpha_and_cmyk_keep_their_colours(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    picture = decode(encoded(quarters(mode), kind))
    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(quarters()).astype(int)).max() <= 1


def test_transparency_shows_white() -> None:
    clear = Image.new("RGBA", (3, 3), (10, 20, 30, 0))
    assert np.asarray(decode(encoded(clear))).min() == 255
    palette = Image.new("P", (3, 3), 0)
    palette.putpalette([10, 20, 30])
    assert np.asarray(decode(encoded(palette, transparency=0))).min() == 255


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    levels = np.asarray(decode(encoded(Image.fromarray(ramp))))[..., 0]
    assert np.array_equal(levels.ravel(), np.arange(256))


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    picture = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert picture.getpixel((0, 0)) == (255, 0, 0)


def test_a_bomb_is_refused_before_it_unfolds() -> None:
    """A PNG that says 60,000 x 60,000 and carries a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    )
    with pytest.raises(PictureError, match="pixels"):
        decode(bomb)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty file"),
        (b"<html></html>", "not an image"),
        (encoded(Image.fromarray(data.astronaut()), "JPEG")[:9000], "does not decode"),
        (encoded(Image.fromarray(data.astronaut()))[:9000], "does not decode"),
    ],
)
def test_what_is_broken_says_how(raw: bytes, reason: str) -> None:
    with pytest.raises(PictureError, match=reason):
        decode(raw)


def test_limits_are_named_with_both_numbers() -> None:
    raw = encoded(quarters())
    with pytest.raises(PictureError, match=r"8x4 pixels, the limit is 31"):
        decode(raw, Limits(pixels=31))
    with pytest.raises(PictureError, match=rf"{len(raw)} bytes, the limit is 10"):
        decode(raw, Limits(bytes=10))


@given(st.binary(max_size=300), st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_damaged_bytes_give_a_picture_or_a_reason(junk: bytes, cut: int) -> None:
    raw = encoded(quarters())
    try:
        assert decode(raw[:cut] + junk + raw[cut + len(junk) :]).mode == "RGB"
    except PictureError as error:
        assert str(error)


def test_a_wider_picture_loses_its_sides_and_a_taller_one_its_ends() -> None:
    stripes = np.zeros((40, 100, 3), np.uint8)
    stripes[:, 30:70] = 255
    assert fit(Image.fromarray(stripes), Bucket(64, 64)).min() > 200
    assert fit(Image.fromarray(stripes).transpose(Image.Transpose.ROTATE_90), Bucket(64, 64)).min() > 200


@given(st.integers(1, 500), st.integers(1, 500), st.sampled_from([Bucket(48, 80), Bucket(256, 256), Bucket(464, 144)]))
@settings(max_examples=50, deadline=None)
def test_any_size_fits_any_bucket(height: int, width: int, bucket: Bucket) -> None:
    pixels = fit(Image.new("RGB", (width, height), (9, 99, 199)), bucket)
    assert pixels.shape == (*bucket, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == (9, 99, 199)).all()


def test_fitting_keeps_where_things_are() -> None:
    photograph = Image.fromarray(data.astronaut())
    pixels = fit(photograph, Bucket(128, 128)).astype(float)
    means = np.asarray(photograph).reshape(128, 4, 128, 4, 3).mean((1, 3))
    assert np.abs(pixels - means).mean() < 4
