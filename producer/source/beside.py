"""Captions as they lie beside the images of a folder: NAME.txt and NAME.json, whatever the case of their endings."""

import hashlib
from collections.abc import Collection, Iterable, Iterator

from producer.source.shard import IMAGE_ENDINGS, RawSample, Shard, inside, is_inside

ENDINGS = ("txt", "json")
_WITHOUT = f"no image of this name beside it; known are {', '.join(sorted(IMAGE_ENDINGS))}"


def ending(name: str) -> str:
    """What follows the last dot of the name of a file that is not hidden, in small letters; "" where nothing does."""
    return "" if name.startswith(".") or "." not in name else name.rpartition(".")[2].lower()


def stem(name: str) -> str:
    """What stands before the last dot."""
    return name.rpartition(".")[0]


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image's."""
    return ending(name) in IMAGE_ENDINGS


def capitals(files: Iterable[str]) -> dict[str, list[str]]:
    """Those of `files` that are captions and whose endings have capitals, by what stands before the ending.

    They come from the listing, since nobody asks a store for each way to write an ending.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(files):
        if ending(name) in ENDINGS and name.rpartition(".")[2] not in ENDINGS:
            found.setdefault(stem(name), []).append(name)
    return found


def without_image(files: Collection[str]) -> list[str]:
    """The captions in a folder of `files` that have no image, one for each name, in order: NAME.txt, and NAME.json
    where something else is called so. A lone .json is mostly no caption, but a list or the settings of something.
    """
    groups: dict[str, set[str]] = {}
    for name in files:
        if of := ending(name):
            groups.setdefault(stem(name), set()).add(of)
    lost = {
        name
        for name, endings in groups.items()
        if not endings & IMAGE_ENDINGS and ("txt" in endings or ("json" in endings and len(endings) > 1))
    }
    captions = [name for name in files if ending(name) in ENDINGS and stem(name) in lost]
    return sorted({stem(name): name for name in sorted(captions, key=ending)}.values())


def lone(folder: str, captions: Collection[str], piece: int) -> list[Shard]:
    """Shards of the `captions` in `folder` that have no image, `piece` in each. Nobody reads them."""
    names = [_printable(name) for name in captions]
    pieces = [tuple(names[first : first + piece]) for first in range(0, len(names), piece)]
    return [Shard(_printable(folder), hashlib.sha256(repr(names).encode()).hexdigest(), names) for names in pieces]


def counted(shard: Shard) -> Iterator[RawSample]:
    """An entry for each caption of a shard of `lone`, so that the loss is counted."""
    for member in shard.members:
        key = member if shard.name == "." else f"{shard.name}/{member}"
        safe = key if is_inside(key) else inside(key)
        yield RawSample(safe, shard.name, "", 0, 0, {}, _WITHOUT)


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
