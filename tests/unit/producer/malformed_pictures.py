"""Pictures that are cut, bent, mislabelled, enormous or merely odd, made in code."""

import functools
import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

# A reason to drop an input that a decoder words as it likes.
ANY = "*"


class Case(NamedTuple):
    """An input and what is to become of it."""

    name: str
    raw: bytes
    reason: str | None = None  # "": must be delivered; else a part of the reason to drop it; None: either is right
    whole: bytes = b""  # where it is delivered, it must look like this one


def drawn(width: int = 48, height: int = 40, mode: str = "RGB") -> Image.Image:
    """Something with content."""
    pixels = np.random.default_rng(width).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)  # type: ignore[arg-type]
    return out.getvalue()


def whole() -> dict[str, bytes]:
    """A sound picture in every format that is read."""
    picture = drawn()
    return {
        "jpeg": encoded(picture, "JPEG"),
        "progressive": encoded(picture, "JPEG", progressive=True),
        "png": encoded(picture, "PNG"),
        "interlaced": encoded(drawn(mode="RGBA"), "PNG"),
        "webp": encoded(picture, "WEBP"),
        "lossless": encoded(picture, "WEBP", lossless=True),
        "gif": encoded(picture, "GIF"),
        "bmp": encoded(picture, "BMP"),
        "tiff": encoded(picture, "TIFF"),
        "deflated": encoded(picture, "TIFF", compression="tiff_deflate"),
        "avif": encoded(picture, "AVIF", speed=10),
    }


@functools.cache
def pictures() -> tuple[Case, ...]:
    """All of them."""
    return tuple(_pictures())


def _pictures() -> Iterator[Case]:
    yield from truncated()
    yield from bent()
    yield from foreign()
    yield from odd()
    yield from bombs()
    yield from headers()
    yield from metadata()


def truncated() -> Iterator[Case]:
    """Each format cut at many points: never half a picture."""
    for kind, raw in whole().items():
        for share in (0.01, 0.2, 0.5, 0.8, 0.95):
            # A cut within trailing bytes that hold no pixels may leave the picture whole.
            yield Case(f"{kind} cut at {share}", raw[: max(1, int(len(raw) * share))], None, raw)
        yield Case(f"{kind} without its last byte", raw[:-1], None, raw)


def bent() -> Iterator[Case]:
    """Each format with bytes changed at random."""
    draw = np.random.default_rng(7)
    for kind, raw in whole().items():
        for number in range(6):
            changed = bytearray(raw)
            for at in draw.integers(0, min(len(raw), 64 if number < 3 else len(raw)), 1 + number):
                changed[at] = int(draw.integers(256))
            yield Case(f"{kind} bent {number}", bytes(changed))


def foreign() -> Iterator[Case]:
    """What is no picture, or one of a format that is not read, with an image's ending."""
    unknown = "not an image of a known format"
    card = b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =                    8".ljust(80) + b"END".ljust(80)
    heads = {
        "fits": card.ljust(2880) + bytes(100),
        "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 40, 40, 8, 3) + bytes(200),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n(/etc/passwd) run\nshowpage\n",
        "pdf": b"%PDF-1.7\n1 0 obj <</Type /Catalog>> endobj\n" * 9,
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "html": b"<!doctype html><title>404</title>" * 30,
        "zip": b"PK\3\4" + bytes(300),
        "gzip": b"\x1f\x8b\x08" + bytes(300),
        "elf": b"\x7fELF" + bytes(300),
        "pickle": b"\x80\x04cos\nsystem\n(Vtrue\ntR.",
        "mp4": b"\0\0\0\x18ftypmp42" + bytes(300),
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300),
        "dds": b"DDS " + struct.pack("<I", 124) + bytes(300),
        "qoi": b"qoif" + struct.pack(">IIBB", 40, 40, 3, 0) + bytes(300),
        "xbm": b"#define a_width 9\n#define a_height 9\nstatic char a_bits[] = {0x00};\n",
        "wmf": b"\xd7\xcd\xc6\x9a" + bytes(300),
        "text": b"a caption where a picture should be",
        "zeros": bytes(5000),
        "ones": b"\xff" * 5000,
    }
    for name, raw in heads.items():
        yield Case(f"{name} as .jpg", raw, unknown)
    for kind in ("PPM", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "DDS", "MSP"):
        picture = drawn(48, 48).convert("1" if kind == "MSP" else "RGB")
        yield Case(f"{kind} as .jpg", encoded(picture, kind), unknown)
    yield Case("nothing", b"", "empty file")
    yield Case("one byte", b"\xff", unknown)


def odd() -> Iterator[Case]:
    """Unusual pictures that are sound, and must come through."""
    for mode, kind in (
        ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("L", "JPEG"), ("1", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("I;16", "PNG"),
        ("I;16", "TIFF"), ("F", "TIFF"), ("LAB", "TIFF"), ("YCbCr", "TIFF"), ("RGBA", "WEBP"), ("RGBA", "AVIF"),
    ):  # fmt: skip
        picture = drawn().convert("L").convert("I").convert("I;16") if mode == "I;16" else _in_mode(mode)
        yield Case(f"{mode} {kind}", encoded(picture, kind), "")
    for width, height in ((1, 1), (1, 40), (65_000, 1), (1, 65_000), (65_535, 1)):
        kind = "PNG" if width > 65_000 else "JPEG"
        yield Case(f"{width} x {height} {kind}", encoded(Image.new("RGB", (width, height), "teal"), kind), "")
    frames = [drawn(40 + n, 40) for n in range(3)]
    frames = [frame.crop((0, 0, 40, 40)) for frame in frames] * 40
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        yield Case(f"animated {kind}", encoded(frames[0], kind, save_all=True, append_images=frames[1:]), "")
    yield Case("MPO", encoded(frames[0], "MPO", save_all=True, append_images=frames[1:2]), None)
    sound = whole()
    for kind in ("jpeg", "png", "webp", "gif", "bmp"):
        yield Case(f"{kind} with a zip behind it", sound[kind] + b"PK\3\4" + bytes(5000), "", sound[kind])
    yield Case("two jpegs in one", sound["jpeg"] * 2, "", sound["jpeg"])
    wide = np.random.default_rng(1).integers(0, 65536, (40, 48, 3), dtype=np.uint16).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    yield Case("16 bits of RGB", png(48, 40, zlib.compress(rows), depth=16), "")


def _in_mode(mode: str) -> Image.Image:
    if mode == "LAB":
        return Image.merge("LAB", drawn().split())
    return drawn().convert("L").convert("F") if mode == "F" else drawn(mode=mode)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, data: bytes, *between: bytes, depth: int = 8, colour: int = 2) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(between) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bombs() -> Iterator[Case]:
    """Small files that unfold, or say that they would."""
    limit = "the limit is"
    deflate = zlib.compressobj(9)
    side = 16_000
    rows = b"".join(deflate.compress(bytes(1 + side // 8) * 1000) for _ in range(side // 1000)) + deflate.flush()
    yield Case("PNG of 256 megapixels in one bit", png(side, side, rows, depth=1, colour=0), limit)
    few = zlib.compress(bytes(1000))
    for width, height in ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (8_001, 8_001), (1, 2**31 - 1)):
        yield Case(f"PNG that says {width} x {height}", png(width, height, few), limit)
    yield Case("PNG that says 8,000 x 8,000 and ends", png(8_000, 8_000, few), "does not decode")
    sound = whole()
    start = sound["jpeg"].index(b"\xff\xc0") + 5
    for height, width in ((65_500, 65_500), (65_535, 65_535), (9_000, 9_000)):
        raw = sound["jpeg"][:start] + struct.pack(">HH", height, width) + sound["jpeg"][start + 4 :]
        yield Case(f"JPEG that says {width} x {height}", raw, limit)
    gif = sound["gif"]
    yield Case("GIF that says 65,535 x 65,535", gif[:6] + b"\xff" * 4 + gif[10:], limit)
    frame = gif.index(b"\x2c", 700)
    yield Case("GIF with a frame beyond its screen", gif[: frame + 5] + b"\xff" * 4 + gif[frame + 9 :], limit)
    bmp = sound["bmp"]
    for width, height in ((60_000, 60_000), (2**31 - 1, 1), (100_000, -100_000)):
        yield Case(f"BMP that says {width} x {height}", bmp[:18] + struct.pack("<ii", width, height) + bmp[26:], None)
    tags = {256: 60_000, 257: 60_000}
    yield Case("TIFF that says 60,000 x 60,000", tiff(tags), limit)
    yield Case("TIFF with a strip for 50 megapixels", tiff({256: 7_000, 257: 7_000, 278: 7_000}), None)
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + b"\xfe\x3f\0" * 2
    inner = canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    yield Case("WebP canvas of 268 megapixels", b"RIFF" + struct.pack("<I", 4 + len(inner)) + b"WEBP" + inner, None)
    webp = sound["lossless"]
    at = webp.index(b"VP8L") + 9
    yield Case("WebP that says 16,384 x 16,384", webp[:at] + b"\xff\xff\xff\x0f" + webp[at + 4 :], None)
    avif = sound["avif"]
    at = avif.index(b"ispe") + 8
    yield Case("AVIF that says 60,000 x 60,000", avif[:at] + struct.pack(">II", 60_000, 60_000) + avif[at + 8 :], None)
    scans = encoded(Image.new("RGB", (3_000, 3_000)), "JPEG", progressive=True)
    last = scans.rindex(b"\xff\xda")
    yield Case("JPEG of 3,000 scans", scans[:last] + scans[last:-2] * 3_000 + b"\xff\xd9", "scans of 3000x3000 pixels")


def tiff(tags: dict[int, int], offset: int = 8, count: int = 1) -> bytes:
    """A TIFF of one strip of zeros with `tags` changed."""
    said = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: 8, 279: 64} | tags
    entries = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, value in sorted(said.items()))
    return struct.pack("<2sHIH", b"II", 42, offset, len(said)) + entries + bytes(4) + bytes(200)


def headers() -> Iterator[Case]:
    """Headers that cannot be meant."""
    few = zlib.compress(bytes(40 * 121))
    for width, height, depth, colour in ((0, 40, 8, 2), (40, 0, 8, 2), (40, 40, 7, 2), (40, 40, 8, 5), (40, 40, 32, 0)):
        yield Case(f"PNG {width} {height} {depth} {colour}", png(width, height, few, depth=depth, colour=colour), ANY)
    sound = whole()
    raw = sound["png"]
    yield Case("PNG without pixels", raw[:33] + chunk(b"IEND", b""), ANY)
    yield Case("PNG with a wrong checksum", raw[:29] + b"\0\0\0\0" + raw[33:], ANY)
    yield Case("PNG with an endless chunk", raw[:33] + b"\x7f\xff\xff\xffIDAT" + raw[41:], None, raw)
    yield Case("PNG with pixels that are not deflated", png(40, 40, b"no deflate at all" * 9), ANY)
    yield Case("PNG with too few rows", png(40, 40, zlib.compress(bytes(121 * 20))), None)
    yield Case("PNG with 2,000 empty chunks", png(40, 40, few, *[chunk(b"juNk", b"")] * 2_000), "")
    for name, change in {
        "offset beyond the end": tiff({}, offset=1 << 30),
        "no tags": struct.pack("<2sHIH", b"II", 42, 8, 0) + bytes(64),
        "65,535 tags": struct.pack("<2sHIH", b"II", 42, 8, 65_535) + bytes(500),
        "tags of two thousand million values": tiff({}, count=2**31 - 1),
        "its strip beyond the end": tiff({273: 1 << 30}),
        "a strip of four gigabytes": tiff({279: 2**32 - 1}),
        "9,999 samples a pixel": tiff({277: 9_999}),
        "an unknown compression": tiff({259: 40_000}),
        "no width": tiff({256: 0}),
    }.items():
        yield Case(f"TIFF with {name}", change, None if "strip of four" in name else ANY)
    loop = tiff({})
    yield Case(
        "TIFF whose next directory is itself", loop[: 10 + 9 * 12] + struct.pack("<I", 8) + loop[14 + 9 * 12 :], None
    )
    bmp = sound["bmp"]
    for name, at, change in (
        ("no width", 18, bytes(4)), ("7 bits", 28, b"\7\0"), ("RLE", 30, b"\1\0\0\0"), ("JPEG in it", 30, b"\4\0\0\0"),
        ("pixels beyond the end", 10, b"\xff\xff\xff\x7f"), ("a header of a gigabyte", 14, b"\0\0\0\x40"),
    ):  # fmt: skip
        yield Case(f"BMP with {name}", bmp[:at] + change + bmp[at + len(change) :], ANY)
    jpeg = sound["jpeg"]
    start = jpeg.index(b"\xff\xc0")
    for marker in (0xC3, 0xC9, 0xCB, 0xCF):
        yield Case(f"JPEG of process {marker:x}", jpeg[: start + 1] + bytes([marker]) + jpeg[start + 2 :], None)
    yield Case("JPEG with 12 bits", jpeg[: start + 4] + b"\x0c" + jpeg[start + 5 :], ANY)
    yield Case("JPEG without tables", jpeg.replace(b"\xff\xc4", b"\xff\xe9"), None)
    yield Case("JPEG without size", jpeg[: start + 5] + bytes(4) + jpeg[start + 9 :], ANY)
    webp = sound["webp"]
    yield Case("WebP with a wild RIFF size", webp[:4] + b"\xff\xff\xff\xff" + webp[8:], None)
    yield Case("WebP without a picture", b"RIFF\x04\0\0\0WEBP", ANY)
    avif = sound["avif"]
    yield Case("AVIF with a wild box", avif[:32] + b"\xff\xff\xff\xff" + avif[36:], ANY)
    yield Case("GIF without frames", sound["gif"][:13] + b"\x3b", ANY)


def metadata() -> Iterator[Case]:
    """What is told beside the pixels: much, or nonsense."""
    picture, sound = drawn(), whole()
    for turn in (0, 9, 99, 65_535):
        exif = Image.Exif()
        exif[0x0112] = turn
        yield Case(f"EXIF that turns by {turn}", encoded(picture, "JPEG", exif=exif), "", sound["jpeg"])
    large = Image.Exif()
    large[0x010E] = "x" * 60_000
    yield Case("EXIF of 60 KB", encoded(picture, "JPEG", exif=large), "", sound["jpeg"])
    for name, body in {
        "nonsense": b"Exif\0\0" + b"MM\0*" + b"\xff" * 400,
        "a loop": b"Exif\0\0" + struct.pack(">2sHIHHHIII", b"MM", 42, 8, 1, 0x8769, 4, 1, 8, 8),
        "65,535 tags": b"Exif\0\0" + struct.pack(">2sHIH", b"MM", 42, 8, 65_535) + bytes(60_000),
        "nothing": b"Exif\0\0",
    }.items():
        yield Case(f"EXIF of {name}", encoded(picture, "JPEG", exif=body), "", sound["jpeg"])
    for name, size in (("200 KB", 200_000), ("10 MB", 10_000_000)):
        raw = encoded(picture, "JPEG", icc_profile=bytes(size))
        yield Case(f"ICC profile of {name}", raw, "", sound["jpeg"])
    xmp = b"\xff\xe1" + struct.pack(">H", 60_031) + b"http://ns.adobe.com/xap/1.0/\0" + b"<!ENTITY a 'a'>" * 4_000
    yield Case("XMP of entities", sound["jpeg"][:2] + xmp + sound["jpeg"][2:], "", sound["jpeg"])
    much = sound["jpeg"][:2] + (b"\xff\xfe\xff\xff" + b"c" * 65_533) * 100 + sound["jpeg"][2:]
    yield Case("JPEG with 6 MB of comments", much, "", sound["jpeg"])
    few = zlib.compress(bytes(40 * 121))
    folded = zlib.compress(bytes(64 << 20), 9)
    for kind, body in {
        b"zTXt": b"key\0\0" + folded,
        b"iTXt": b"key\0\1\0\0\0" + folded,
        b"iCCP": b"key\0\0" + folded,
        b"tEXt": b"key\0" + b"t" * 2_000_000,
        b"eXIf": b"MM\0*" + b"\xff" * 500_000,
    }.items():
        yield Case(f"PNG with a huge {kind.decode()}", png(40, 40, few, chunk(kind, body)), None)
