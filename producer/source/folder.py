"""A user's folder of images, at any depth, with NAME.txt (and NAME.json) beside NAME.jpg."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from producer.source.caption import Captions, read_captions
from producer.source.shard import IMAGE_ENDINGS, RawSample, Shard, SourceError, UnreadableError, is_inside, is_text

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
        for folder, below, files in os.walk(self._root):
            below[:] = sorted(name for name in below if not name.startswith("."))
            images = sorted(name for name in files if is_image(name))
            for first in range(0, len(images), PIECE):
                shards.append(self._shard(Path(folder), tuple(images[first : first + PIECE])))
        if not shards:
            raise SourceError(f"source.path: {self._root} holds no image; known are {', '.join(sorted(IMAGE_ENDINGS))}")
        return sorted(shards, key=lambda shard: (shard.name, shard.members))

    def _shard(self, folder: Path, members: tuple[str, ...]) -> Shard:
        name = folder.relative_to(self._root).as_posix()
        wrong = next((text for text in (name, *members) if not is_text(text)), None)
        if wrong is not None:
            raise SourceError(f"source.path: the file name {wrong!r} in {folder!r} is not UTF-8; rename it")
        seen = hashlib.sha256()
        for member in members:
            for path in (folder / member, *_captions(folder / member)):
                found = path.stat() if path.exists() else None
                seen.update(repr((path.name, found and (found.st_size, found.st_mtime_ns))).encode())
        return Shard(name, seen.hexdigest(), members)

    def samples(self, shard: Shard) -> Iterator[RawSample]:
        """The images of `shard` by name. The key is the path with its ending: a.jpg and a.png are two samples."""
        for member in shard.members:
            path = self._root / shard.name / member
            key = member if shard.name == "." else f"{shard.name}/{member}"
            captions = _read_captions(path)
            try:
                found = path.stat()
                fault = "" if stat.S_ISREG(found.st_mode) else "refused: not a plain file"
                size = found.st_size
            except OSError as error:
                fault, size = f"cannot be read: {error.strerror}", 0
            if not fault and not os.access(path, os.R_OK):
                fault = "cannot be read: permission denied"
            yield RawSample(key, shard.name, member, 0, size, captions.texts, fault, captions.faults)

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


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image's."""
    return not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_ENDINGS and "." in name


def _captions(image: Path) -> tuple[Path, Path]:
    return image.with_suffix(".txt"), image.with_suffix(".json")


def _read_captions(image: Path) -> Captions:
    found = Captions({})
    for path in _captions(image):
        if path.is_file():
            ending = path.suffix.removeprefix(".")
            try:
                found |= read_captions(ending, path.stat().st_size, path.read_bytes)
            except OSError as error:
                found |= Captions({}, (f"{ending} caption cannot be read: {error.strerror}",))
    return found
