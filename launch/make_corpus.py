"""Write the smoke corpus: real photographs, rendered text, and bad input that curation must find.

    python launch/make_corpus.py OUT [--lettering DIR]

OUT gets webdataset tars (NAME.jpg or .png, NAME.txt with the raw caption, for some NAME.json with a longer one), the
whole photographs as backgrounds for synthesis, and planted.json, which says of every bad sample which operator of which
stage has to drop it and why. The rendered text goes to DIR, where it is given. The bytes are the same every time.
"""

import argparse
import importlib.util
import io
import json
import os
import sys
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from launch.lettering import SIGNS, draw
from launch.photographs import PHOTOGRAPHS, Crop

_SHARDS = 5
_FONT = "fonts/NotoSansCJKsc-Regular.otf"
# Stored sideways with an EXIF note, as phones do.
_TURNED = "coffee-06"
_ORIENTATION = 0x0112


class CorpusError(ValueError):
    """A package that the corpus is made from is not installed."""


@dataclass(frozen=True)
class Item:
    """One sample of a tar: its members by ending, in the order in which they are written."""

    stem: str
    members: dict[str, bytes]
    planted: tuple[str, str] | None = None  # the operator that must drop it, and why
    stage: int = 1  # of that operator: stages before it keep the sample


def make_corpus(out: Path, lettering: Path | None = None) -> dict[str, int]:
    """Write the corpus to `out`, its rendered text to `lettering`, and say how many good and bad samples it holds."""
    lettering = lettering or out
    for folder in (out / "backdrops", lettering):
        folder.mkdir(parents=True, exist_ok=True)
    good = list(_photographs())
    shards = {f"photographs-{n:05d}": good[n::_SHARDS] for n in range(_SHARDS)}
    # Their originals come before them in name, so that it is the copies that are dropped.
    for number, item in enumerate([*_planted(good), *_damaged(), *_said_badly(), *_written_on()]):
        shards[f"photographs-{_SHARDS - 1 - number % 2:05d}"].insert(3 * (number // 2), item)
    for item in good:
        if item.stem.endswith("-00"):
            for ending in item.members.keys() & {"jpg", "png", "txt"}:
                _replace(out / "backdrops" / f"{item.stem}.{ending}", item.members[ending])
    for name, items in shards.items():
        _write_tar(out / f"{name}.tar", items)
    signs = list(_lettering())
    _write_tar(lettering / "lettering-00000.tar", signs)
    planted = [
        {"key": f"{name}/{item.stem}", "operator": item.planted[0], "why": item.planted[1], "stage": item.stage}
        for name, items in sorted(shards.items())
        for item in items
        if item.planted
    ]
    _replace(out / "planted.json", (json.dumps(planted, indent=2) + "\n").encode())
    return {"good": len(good) + len(signs), "bad": len(planted)}


def _photographs() -> Iterator[Item]:
    for photograph in PHOTOGRAPHS:
        with Image.open(_package(photograph.package) / photograph.file) as opened:
            whole = opened.convert("L" if opened.mode == "L" else "RGB")
        name = Path(photograph.file).stem.replace("_", "-")
        shape = "square" if whole.width == whole.height else "wide" if whole.width > whole.height else "tall"
        yield _item(f"{name}-00", whole, photograph.whole, f"A {shape} photograph. {photograph.whole}", 0)
        for number, crop in enumerate(photograph.crops, start=1):
            part = whole.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
            where = _where(crop, whole.width, whole.height)
            long = f"{crop.shows} It is {where} of a larger photograph: {photograph.whole}"
            yield _item(f"{name}-{number:02d}", part, crop.shows, long, number)


def _where(crop: Crop, width: int, height: int) -> str:
    across = (crop.left + crop.width / 2) / width
    down = (crop.top + crop.height / 2) / height
    side = "left" if across < 0.4 else "right" if across > 0.6 else ""
    level = "upper" if down < 0.4 else "lower" if down > 0.6 else ""
    return "the " + (" ".join(word for word in (level, side) if word) or "middle") + " part"


def _lettering() -> Iterator[Item]:
    font = _package("mplfonts") / _FONT
    for number, sign in enumerate(SIGNS):
        yield _item(f"sign-{number:02d}", draw(sign, font), sign.caption, sign.recaption, number)


def _item(stem: str, picture: Image.Image, caption: str, recaption: str, number: int) -> Item:
    """A good sample: every third is a PNG, two of three have a second caption."""
    small = picture.width * picture.height < 400_000
    image = {"png": _png(picture)} if number % 3 == 2 and small else {"jpg": _jpeg(picture, turned=stem == _TURNED)}
    members = image | {"txt": f"{caption}\n".encode()}
    if number % 3 != 1:
        members["json"] = json.dumps({"captions": {"recaption": recaption}}, ensure_ascii=False).encode()
    return Item(stem, members)


def _planted(good: list[Item]) -> Iterator[Item]:
    """One sample of every kind of bad input."""
    photographs = {item.stem: item for item in good}
    coffee = photographs["coffee-01"].members["jpg"]
    retina = photographs["retina-00"].members["jpg"]
    text = {"txt": b"A planted sample.\n"}
    yield Item("truncated", {"jpg": coffee[: len(coffee) // 2]} | text, ("broken", "half a JPEG"))
    yield Item("zero", {"jpg": b""} | text, ("broken", "a file of no bytes"))
    yield Item("bomb", {"png": _bomb(30_000)} | text, ("broken", "a small PNG of 900 million pixels"))
    yield Item("lying", {"jpg": b"<html><body>404 Not Found</body></html>\n" * 80} | text, ("broken", "HTML as .jpg"))
    yield Item("archive", {"bin": bytes(4096)} | text, ("broken", "no image at all"))
    yield Item("flat", {"png": _png(Image.new("RGB", (320, 320), "grey"))} | text, ("file_size", "a single colour"))
    yield Item("thumbnail", {"jpg": _jpeg(_open(coffee).resize((200, 200)))} | text, ("resolution", "200 x 200 pixels"))
    gbk = {"jpg": photographs["china-03"].members["jpg"], "txt": "昆明湖边的红色宝塔".encode("gbk")}
    yield Item("gbk", gbk, ("caption", "a caption in GBK, not UTF-8"))
    yield Item("silent", {"jpg": photographs["rocket-03"].members["jpg"]}, ("caption", "no caption"))
    yield Item(
        "blank", {"jpg": photographs["rocket-04"].members["jpg"], "txt": b" \n"}, ("caption", "a caption of spaces")
    )
    yield Item("zz-again", photographs["astronaut-01"].members, ("exact_duplicate", "astronaut-01, the same bytes"))
    smaller = _open(retina).resize((1300, 1300), Image.Resampling.LANCZOS)
    why = ("near_duplicate", "retina-00, 8 % smaller and encoded again")
    yield Item("zz-alike", {"jpg": _jpeg(smaller, quality=60)} | text, why)


def _damaged() -> Iterator[Item]:
    """One picture for every operator of stage 2, each of a part of a photograph that no good sample shows so."""
    part = {name: _part(*box) for name, box in _PARTS.items()}
    noise = np.random.default_rng(1)
    exif = Image.Exif()
    exif[_ORIENTATION] = 3
    fogged = np.asarray(part["blurred"].resize((16, 12), Image.Resampling.BOX).resize((400, 300)))
    wall = np.where(noise.random((300, 400, 1)) < 0.5, 170, 190).astype(np.uint8)
    # Upside down, or it would be a near duplicate of what is printed finely over the same part.
    grains = np.clip(np.asarray(part["grains"], np.float32)[::-1] + noise.normal(0, 120, (300, 400, 3)), 0, 255)
    strong = part["strong"].convert("HSV")
    strong = Image.merge("HSV", (strong.getchannel(0), strong.getchannel(1).point(lambda _: 255), strong.getchannel(2)))
    pictures = {
        "upside-down": (_jpeg(part["turned"], exif=exif), "rotation", "EXIF says that it stands on its head"),
        "blurred": (_jpeg(Image.fromarray(fogged)), "clarity", "out of focus"),
        "night": (_png(part["dark"].point(lambda v: v // 5)), "underexposure", "nearly black"),
        "glare": (_png(part["bright"].point(lambda v: min(255, 2 * v + 60))), "overexposure", "nearly white"),
        "neon": (_jpeg(strong.convert("RGB")), "saturation", "every colour at its strongest"),
        "wall": (_png(Image.fromarray(np.repeat(wall, 3, 2))), "entropy", "an empty wall of two greys"),
        "static": (_jpeg(Image.fromarray(grains.astype(np.uint8))), "texture", "more noise than picture"),
    }
    for stem, (image, operator, why) in pictures.items():
        ending = "png" if image.startswith(b"\x89PNG") else "jpg"
        yield Item(stem, {ending: image, "txt": f"A planted sample, {why}.\n".encode()}, (operator, why), stage=2)


def _said_badly() -> Iterator[Item]:
    """Good pictures with captions that do not describe them, or more than a model can read."""
    captions = {
        "sorry": ("Sorry, I cannot provide a caption for this image.", "invalid_caption", "a refusal"),
        "sorry-zh": ("抱歉，我无法为这张图片提供描述。", "invalid_caption", "a refusal in Chinese"),
        "markup": ('<div class="alt"><img src="x.jpg"></div>', "invalid_caption", "markup"),
        "endless": (" ".join(f"There are {n} of them." for n in range(900)), "token_length", "thousands of tokens"),
    }
    for number, (stem, (caption, operator, why)) in enumerate(captions.items()):
        picture = _part("china.jpg", 10 + 90 * number, 120, 300, 260)
        yield Item(stem, {"jpg": _jpeg(picture), "txt": f"{caption}\n".encode()}, (operator, why), stage=3)


def _written_on() -> Iterator[Item]:
    """Photographs, faded, with too much text on them or too small."""
    font = _package("mplfonts") / _FONT
    kinds = {
        "dense": ("intensive_text", "text from edge to edge", "bright", 30, 31, 0),
        "fine-print": ("small_character", "letters of four pixels at 256p", "faded", 9, 56, 60),
    }
    for stem, (operator, why, part, size, step, top) in kinds.items():
        picture = _part(*_PARTS[part]).resize((600, 450), Image.Resampling.BICUBIC).point(lambda v: 190 + v // 4)
        canvas, face = ImageDraw.Draw(picture), ImageFont.truetype(font, size, layout_engine=ImageFont.Layout.BASIC)
        words = " ".join(f"{number} {_WORDS}" for number in range(40))
        for row, y in enumerate(range(top, 450 - top, step)):
            canvas.text((2, y), words[61 * row : 61 * row + 140], fill=(10, 10, 20), font=face)
        text = f"A planted sample, {why}.\n"
        yield Item(stem, {"jpg": _jpeg(picture), "txt": text.encode()}, (operator, why), stage=4)


_WORDS = "when in the course of human events it becomes necessary for one people"

# Photograph, left, top, width, height.
_PARTS = {
    "turned": ("coffee.png", 190, 60, 400, 300),
    "blurred": ("astronaut.png", 40, 40, 400, 300),
    "dark": ("rocket.jpg", 120, 60, 400, 300),
    "bright": ("ihc.png", 60, 110, 400, 300),
    "strong": ("flower.jpg", 180, 90, 400, 300),
    "grains": ("motorcycle_right.png", 300, 150, 400, 300),
    "faded": ("chelsea.png", 40, 0, 400, 300),
}


def _part(file: str, left: int, top: int, width: int, height: int) -> Image.Image:
    found = next(photograph for photograph in PHOTOGRAPHS if photograph.file == file)
    with Image.open(_package(found.package) / file) as whole:
        return whole.convert("RGB").crop((left, top, left + width, top + height))


def _bomb(side: int) -> bytes:
    """A valid PNG of side x side black pixels: about a thousandth of its decoded size."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = side.to_bytes(4, "big") * 2 + bytes((1, 0, 0, 0, 0))
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big") for kind, body in chunks
    )


def _open(raw: bytes) -> Image.Image:
    return Image.open(io.BytesIO(raw))


def _jpeg(picture: Image.Image, *, quality: int = 90, turned: bool = False, exif: Image.Exif | None = None) -> bytes:
    out = io.BytesIO()
    exif = exif or Image.Exif()
    if turned:
        exif[_ORIENTATION] = 6
        picture = picture.transpose(Image.Transpose.ROTATE_90)
    picture.save(out, "JPEG", quality=quality, exif=exif)
    return out.getvalue()


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _package(path: str) -> Path:
    """A folder inside an installed package, without importing it."""
    name, _, inside = path.partition("/")
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise CorpusError(f"the package {name} is not installed; pip install -e '.[smoke]'")
    return Path(found.submodule_search_locations[0]) / inside


def _write_tar(path: Path, items: list[Item]) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for item in items:
            for ending, content in item.members.items():
                member = tarfile.TarInfo(f"{item.stem}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    _replace(path, out.getvalue())


def _replace(path: Path, content: bytes) -> None:
    """Write aside and rename; a file that is the same already is left alone, and with it all that was scored of it."""
    if path.exists() and path.read_bytes() == content:
        return
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(content)
    os.replace(aside, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--lettering", type=Path, metavar="DIR", help="the folder of the rendered text; OUT by default")
    arguments = parser.parse_args()
    try:
        made = make_corpus(arguments.out, arguments.lettering)
    except (CorpusError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: {made['good']} good samples, {made['bad']} planted bad ones")
    return 0


if __name__ == "__main__":
    sys.exit(main())
