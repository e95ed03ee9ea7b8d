"""A user's folder of images, at any depth, with NAME.txt (and NAME.json) beside NAME.jpg.

An edit's references lie there too: NAME.ref1.jpg, NAME.ref2.png.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from producer.source.beside import capitals, counted, ending, is_image, lone, stem, without_image
from producer.source.caption import Captions, read_captions
from producer.source.references import apart, in_order, named
from producer.source.shard import (
    IMAGE_ENDINGS,
    Place,
    RawSample,
    Shard,
    SourceError,
    UnreadableError,
    is_inside,
    is_text,
)

# Images scanned by one task. Part of how shards are cut, so that a changed file has only its piece scanned again.
PIECE = 512


class Folder:
    """Every image below a folder; a shard is up to 512 images of one of its folders."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            what = "is no folder" if path.exists() else "does not exist"
            raise SourceError(f"source.path: {path} {what}; it should be a folder of images with .txt captions")
        self._root = path

    def shards(self) -> list[Shard]:
        """The folders that hold images, in pieces, by name. Hidden files and linked folders are passed over."""
        shards: list[Shard] = []
        others: list[Shard] = []
        for folder, below, files in os.walk(self._root):
            below[:] = sorted(name for name in below if not name.startswith("."))
            images = apart(name for name in files if is_image(name))
            targets, written = tuple(images), capitals(files)
            for first in range(0, len(targets), PIECE):
                members = targets[first : first + PIECE]
                beside = dict.fromkeys(name for member in members for name in images[member])
                captions = dict.fromkeys(name for member in members for name in written.get(stem(member), []))
                shards.append(self._shard(Path(folder), members, tuple(beside), tuple(captions)))
            others += lone(self._name(Path(folder)), without_image(files), PIECE)
        if not shards:
            raise SourceError(f"source.path: {self._root} holds no image; known are {', '.join(sorted(IMAGE_ENDINGS))}")
        return sorted([*shards, *others], key=lambda shard: (shard.name, shard.members))

    def _name(self, folder: Path) -> str:
        return folder.relative_to(self._root).as_posix()

    def _shard(
        self, folder: Path, members: tuple[str, ...], references: tuple[str, ...], captions: tuple[str, ...]
    ) -> Shard:
        name = self._name(folder)
        wrong = next((text for text in (name, *members, *references) if not is_text(text)), None)
        if wrong is not None:
            raise SourceError(f"source.path: the file name {wrong!r} in {folder!r} is not UTF-8; rename it")
        seen = hashlib.sha256()
        paths = [path for member in members for path in (folder / member, *_captions(folder / member))]
        for path in (*paths, *(folder / other for other in (*references, *captions))):
            found = path.stat() if path.exists() else None
            seen.update(repr((path.name, found and (found.st_size, found.st_mtime_ns))).encode())
        return Shard(name, seen.hexdigest(), members, references=references, captions=captions)

    def samples(self, shard: Shard) -> Iterator[RawSample]:
        """The images of `shard` by name. The key is the path with its ending: a.jpg and a.png are two samples."""
        if not is_image(shard.members[0]):
            yield from counted(shard)
            return
        written = capitals(shard.captions)
        beside: dict[str, list[tuple[int, str]]] = {}
        for reference in shard.references:
            if found := named(reference):
                beside.setdefault(found.stem, []).append((found.number, reference))
        for member in shard.members:
            path = self._root / shard.name / member
            key = member if shard.name == "." else f"{shard.name}/{member}"
            captions = _read_captions(path, written.get(stem(member), []))
            size, fault = _looked_at(path)
            places = []
            for number, name in beside.get(stem(member), []):
                bytes_, why = _looked_at(path.with_name(name))
                places.append((number, Place(name, 0, bytes_)))
                fault = fault or (why and f"reference {number}: {why}")
            references, odd = in_order(places)
            found_at = shard.name, member, 0, size
            yield RawSample(key, *found_at, captions.texts, fault or odd, captions.faults, references=references)

    def read(self, shard: str, member: str, offset: int, size: int) -> bytes:
        """The image `member` of the folder `shard`, still of `size` bytes."""
        path = self._root / shard / member
        if not is_inside(f"{shard}/{member}"):
            raise SourceError(f"{shard}/{member}: not below {self._root}")
        try:
            with path.open("rb") as file:
                file.seek(offset)
                raw = file.read(size + 1)
        except OSError as error:
            # One image can go without the others; without its root nothing is any image's fault.
            kind = UnreadableError if self._root.is_dir() else SourceError
            raise kind(f"{path}: {error.strerror}; curate again if the source changed") from None
        if len(raw) != size:
            raise UnreadableError(f"{path}: no longer the {size} bytes it was curated with; curate again")
        return raw


def _looked_at(path: Path) -> tuple[int, str]:
    """The bytes of a file, and why it must not be read."""
    try:
        found = path.stat()
    except OSError as error:
        return 0, f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(found.st_mode):
        return found.st_size, "refused: not a plain file"
    return found.st_size, "" if os.access(path, os.R_OK) else "cannot be read: permission denied"


def _captions(image: Path) -> tuple[Path, Path]:
    return image.with_suffix(".txt"), image.with_suffix(".json")


def _read_captions(image: Path, others: Sequence[str]) -> Captions:
    """What is written beside `image`; of one split, what stands under small letters counts."""
    found = Captions({})
    for path in (*(image.with_name(name) for name in others), *_captions(image)):
        if path.is_file():
            kind = ending(path.name)
            try:
                found |= read_captions(kind, path.stat().st_size, path.read_bytes)
            except OSError as error:
                found |= Captions({}, (f"{kind} caption cannot be read: {error.strerror}",))
    return found
