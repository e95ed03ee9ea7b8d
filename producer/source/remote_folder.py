"""Images with captions beside them in a store behind a URL, as folder.py reads them from a disk.

What lies beside an image and how large it is comes from the listing, which the store is asked for once: asking again
for every image would cost a request each.
"""

import hashlib
from collections.abc import Iterator
from functools import partial

from producer.source.beside import (
    ENDINGS,
    capitals,
    counted,
    ending,
    is_image,
    lone,
    stem,
    without_image,
)
from producer.source.caption import Captions, read_captions
from producer.source.folder import PIECE
from producer.source.references import apart, in_order, named
from producer.source.remote import RemoteStore
from producer.source.shard import (
    IMAGE_ENDINGS,
    Place,
    RawSample,
    Shard,
    SourceError,
    UnreadableError,
    inside,
    is_inside,
)
from producer.source.store import File


class RemoteFolder:
    """Every image below a URL; a shard is up to 512 images of one of its folders."""

    def __init__(self, store: RemoteStore) -> None:
        self._store = store

    def shards(self) -> list[Shard]:
        """The folders that hold images, in pieces, by name. Names that begin with a dot are passed over."""
        folders: dict[str, dict[str, File]] = {}
        for file in self._store.files(""):
            folder, _, name = file.name.rpartition("/")
            if not any(part.startswith(".") and part != ".." for part in file.name.split("/")):
                folders.setdefault(folder, {})[name] = file
        shards: list[Shard] = []
        others: list[Shard] = []
        for folder, files in folders.items():
            images = apart(name for name in files if is_image(name))
            targets, written = list(images), capitals(files)
            for first in range(0, len(targets), PIECE):
                members = targets[first : first + PIECE]
                beside = list(dict.fromkeys(name for member in members for name in images[member]))
                captions = list(dict.fromkeys(name for member in members for name in written.get(stem(member), [])))
                shards.append(_shard(folder or ".", members, beside, captions, files))
            others += lone(folder or ".", without_image(files), PIECE)
        if not shards:
            known = ", ".join(sorted(IMAGE_ENDINGS))
            raise SourceError(f"source.path: {self._store.root} holds no image; known are {known}")
        return sorted([*shards, *others], key=lambda shard: (shard.name, shard.members))

    def samples(self, shard: Shard) -> Iterator[RawSample]:
        """The images of `shard` by name; the key is the path with its ending."""
        if not is_image(shard.members[0]):
            yield from counted(shard)
            return
        rest = dict(zip((*shard.references, *shard.captions), shard.sizes[3 * len(shard.members) :], strict=True))
        shouted = capitals(shard.captions)
        shown: dict[str, list[tuple[int, Place]]] = {}
        for reference in shard.references:
            if found := named(reference):
                shown.setdefault(found.stem, []).append((found.number, Place(reference, 0, rest[reference])))
        for number, member in enumerate(shard.members):
            size, *beside = shard.sizes[3 * number : 3 * number + 3]
            key = _join(shard.name, member)
            fault = "" if is_inside(key) else f"refused: the name {key[:200]!r} leads out of the source"
            written = {_join(shard.name, name): rest[name] for name in shouted.get(stem(member), [])}
            written |= {_beside(key, one): size for one, size in zip(ENDINGS, beside, strict=True) if size >= 0}
            captions = Captions({}) if fault else self._captions(written)
            references, odd = in_order(shown.get(stem(member), []))
            place = inside(key) if fault else key, shard.name, member, 0, size
            yield RawSample(*place, captions.texts, fault or odd, captions.faults, references=references)

    def _captions(self, written: dict[str, int]) -> Captions:
        """What stands in the files `written`, of so many bytes; of one split, the last counts."""
        found = Captions({})
        for name, size in written.items():
            try:
                found |= read_captions(ending(name.rpartition("/")[2]), size, partial(self._all, name, size))
            except UnreadableError as error:
                found |= Captions({}, (f"{ending(name)} caption: {error}",))
        return found

    def _all(self, name: str, size: int) -> bytes:
        raw = self._store.read(name, 0, size)
        if len(raw) != size:
            raise UnreadableError(f"{self._store.root}/{name}: no longer the {size} bytes it was listed with")
        return raw

    def read(self, shard: str, member: str, offset: int, size: int) -> bytes:
        """The image `member` of the folder `shard`."""
        return self._all(_join(shard, member), size)


def _shard(
    folder: str, members: list[str], references: list[str], captions: list[str], files: dict[str, File]
) -> Shard:
    seen, sizes = hashlib.sha256(), []
    for member in members:
        for name in (member, *(_beside(member, one) for one in ENDINGS)):
            file = files.get(name)
            sizes.append(file.size if file else -1)
            seen.update(repr((name, file and (file.size, file.stamp))).encode())
    for name in (*references, *captions):
        sizes.append(files[name].size)
        seen.update(repr((name, files[name].size, files[name].stamp)).encode())
    what = tuple(members), tuple(sizes)
    return Shard(folder, seen.hexdigest(), *what, references=tuple(references), captions=tuple(captions))


def _beside(image: str, ending: str) -> str:
    return f"{stem(image)}.{ending}"


def _join(folder: str, member: str) -> str:
    return member if folder == "." else f"{folder}/{member}"
