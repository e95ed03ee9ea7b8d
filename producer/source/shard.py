"""What every kind of source gives: shards, the samples in them, and the bytes of an image."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple, Protocol

# A sample's image is its member with one of these endings, in any case. Its content decides what it really is.
IMAGE_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})


class SourceError(ValueError):
    """A source, or a place in it, cannot be read; the message says what, where and the fix."""


class UnreadableError(SourceError):
    """One image cannot be read while its source answers otherwise: the message is the reason to leave it out."""


class Place(NamedTuple):
    """Where a picture's bytes lie inside a shard."""

    member: str
    offset: int
    size: int


class Shard(NamedTuple):
    """A piece of a source that is scanned by one task."""

    name: str  # relative to the source's root
    stamp: str  # another one when the content may have changed
    members: tuple[str, ...] = ()  # what a folder's piece holds; a tar knows by itself
    sizes: tuple[int, ...] = ()  # where asking again is dear: bytes of each member, its .txt and .json, -1 for none
    fault: str = ""  # why the whole piece must not be read
    references: tuple[str, ...] = ()  # what lies beside a folder's members; their bytes follow in `sizes`, if there
    captions: tuple[str, ...] = ()  # and its captions whose endings have capitals; their bytes follow then


@dataclass(frozen=True)
class RawSample:
    """An image's place and its captions by split, before anything was decoded."""

    key: str  # unique within the source
    shard: str
    member: str  # "" if there is no image
    offset: int
    size: int
    captions: dict[str, str]
    fault: str = ""  # why the image must not be read
    caption_faults: tuple[str, ...] = ()  # why captions that are there cannot be used
    image: bytes | None = None  # where listing had to read it anyway
    references: tuple[Place, ...] = ()  # pictures that an edit starts from, beside its target


class Reader(Protocol):
    """A source opened for reading."""

    def shards(self) -> list[Shard]:
        """All shards, by name; SourceError if there is nothing to read."""

    def samples(self, shard: Shard) -> Iterator[RawSample]:
        """Every sample of `shard` once, the bad ones with their fault."""

    def read(self, shard: str, member: str, offset: int, size: int) -> bytes:
        """The `size` bytes of an image as `samples` placed it.

        UnreadableError if this image cannot be had while others can, another SourceError if the source cannot.
        """


def is_inside(name: str) -> bool:
    """Whether `name` is a relative path that stays below where it starts."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def inside(name: str) -> str:
    """`name`, which leads out of the source, spelt so that it does not: for a key."""
    return name.replace("\0", "%00").replace("..", "%2E%2E").lstrip("/")


def is_text(name: str) -> bool:
    """Whether a file's name can be written as UTF-8, as every column of the index must."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def refused(shard: Shard) -> RawSample:
    """The one entry of a shard that must not be opened, so that the loss is counted."""
    key = inside(shard.name).rstrip("/") or "%2F"
    return RawSample(f"{key}/(refused)", shard.name, "", 0, 0, {}, shard.fault)
