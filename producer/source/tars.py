"""Webdataset tars: the members of one stem are a sample, read at random by offset; NAME.ref1.jpg is a reference's.

Only headers are read to list a tar, by a small strict parser: `tarfile` stops without a word at a damaged header and
follows whatever lengths it is told. Members that climb out, links and devices are counted as faulty, never followed.
"""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from producer.source.caption import Captions, read_captions
from producer.source.references import in_order, named
from producer.source.shard import (
    IMAGE_ENDINGS,
    Place,
    RawSample,
    Shard,
    SourceError,
    UnreadableError,
    inside,
    is_inside,
    refused,
)
from producer.source.store import Store

_BLOCK = 512
# A pax or long-name header holds a path and a few numbers.
_MAX_HEADER = 1 << 20
# Beyond these somebody plays with us: a path may have 4,096 bytes (Linux PATH_MAX), a shard some thousand samples.
_MAX_NAME = 4096
_MAX_MEMBERS = 2_000_000
_PADDING = 10_240  # tar fills its last record with zeros
_PACKED = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tgz")
# Types without data, whatever size their header claims.
_EMPTY = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)


class DamageError(ValueError):
    """A tar cannot be read beyond some byte."""


class Member(NamedTuple):
    name: str
    offset: int
    size: int
    fault: str


class Tars:
    """All tars of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def shards(self) -> list[Shard]:
        """Every .tar below the root, by name."""
        files = self._store.files(".tar")
        if not files:
            packed = next((file for end in _PACKED for file in self._store.files(end)), None)
            why = f"only compressed ones like {packed.name}: unpack them" if packed else "nothing to read"
            raise SourceError(f"source.path: {self._store.root} holds no .tar, {why}")
        return [Shard(file.name, file.stamp, fault=file.fault) for file in files]

    def samples(self, shard: Shard) -> Iterator[RawSample]:
        """The samples of a tar in the order of their first members."""
        if shard.fault:
            yield refused(shard)
            return
        groups: dict[str, list[Member]] = {}
        damage = ""
        with self._store.open(shard.name) as file:
            try:
                for member in list_members(file):
                    stem = _stem(member.name)
                    if stem:
                        groups.setdefault(stem, []).append(member)
            except DamageError as error:
                damage = str(error)
            for stem, members in groups.items():
                yield _sample(file, shard.name, stem, members)
        if damage:
            # One entry for all that cannot be seen, so that the loss is counted.
            yield RawSample(f"{_without_ending(shard.name)}/(damaged)", shard.name, "", 0, 0, {}, damage)

    def read(self, shard: str, member: str, offset: int, size: int) -> bytes:
        """`size` bytes at `offset` of a tar."""
        raw = self._store.read(shard, offset, size)
        if len(raw) != size:
            raise UnreadableError(
                f"{self._store.root}/{shard}: ends before the {size} bytes of {member} at {offset}; curate again"
            )
        return raw


def list_members(file: BinaryIO) -> Iterator[Member]:
    """Every member of a tar by its headers alone; DamageError where one is not what it claims."""
    end = file.seek(0, 2)
    position = listed = 0
    extended: dict[str, str] = {}
    while True:
        file.seek(position)
        try:
            header = tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if type(error) is tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                _check_the_end(file, position)
                return
            raise DamageError(f"tar header at byte {position}: {error}; the rest cannot be read") from None
        start = position + _BLOCK
        size = 0 if header.type in _EMPTY else _number(extended.get("size"), header.size, position)
        if size < 0 or start + size > end:
            raise DamageError(f"tar member at byte {position} claims {size} bytes, {end - start} are left")
        position = start + -(-size // _BLOCK) * _BLOCK
        if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            if size > _MAX_HEADER:
                raise DamageError(f"tar header at byte {start - _BLOCK} of {size} bytes, the limit is {_MAX_HEADER}")
            raw = file.read(size)
            long = header.type == tarfile.GNUTYPE_LONGNAME
            extended |= {"path": _text(raw.rstrip(b"\0"))} if long else _pax(raw, start)
        elif header.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            name = _printable(extended.get("path", header.name))
            if header.type != tarfile.DIRTYPE:
                fault = _refusal(name, header, extended)
                yield Member(_safe(name) if fault else name, start, size, fault)
                listed += 1
            extended = {}
        if listed > _MAX_MEMBERS:
            raise DamageError(f"tar has more than {_MAX_MEMBERS} members, up to byte {position}; the rest is not read")


def _check_the_end(file: BinaryIO, position: int) -> None:
    """Raise DamageError if what follows the end of a tar is another one, as `cat` makes them: tar ignores it."""
    for block in range(1, _PADDING // _BLOCK + 2):
        file.seek(position + block * _BLOCK)
        try:
            tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            continue
        raise DamageError(f"tar ends at byte {position}, and another begins behind it; the rest is not read")


def _number(said: str | None, otherwise: int, position: int) -> int:
    if said is None:
        return otherwise
    if not (said.isascii() and said.isdigit() and len(said) < 20):
        raise DamageError(f"tar header at byte {position}: its size is {said[:40]!r}")
    return int(said)


def _pax(raw: bytes, start: int) -> dict[str, str]:
    """The `length key=value` records of a pax header (POSIX.1-2001, pax Interchange Format)."""
    found = {}
    while raw.rstrip(b"\0"):
        length, space, _ = raw.partition(b" ")
        if not space or not length.isdigit() or len(length) > 7 or not len(length) + 2 < int(length) <= len(raw):
            raise DamageError(f"pax header at byte {start} is malformed")
        name, _, value = raw[len(length) + 1 : int(length) - 1].partition(b"=")
        found[_text(name)] = _text(value)
        raw = raw[int(length) :]
    return found


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").removeprefix("./")


def _refusal(name: str, header: tarfile.TarInfo, extended: dict[str, str]) -> str:
    if len(name.encode()) > _MAX_NAME:
        return f"refused: a name of {len(name.encode())} bytes, the limit is {_MAX_NAME}"
    if not is_inside(name):
        return f"refused: the name {name[:200]!r} leads out of the shard"
    if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in extended):
        return "refused: a sparse file"
    return "" if header.isreg() else "refused: not a plain file"


def _safe(name: str) -> str:
    # Its end says what it holds.
    short = name if len(name) <= _MAX_NAME else name[:100] + name[-100:]
    return inside(short)


def _stem(name: str) -> str:
    """Up to the first dot of the last part, as webdataset groups; "" for hidden files, which no sample consists of."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0] if last.partition(".")[0] else ""


def _ending(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()


def _without_ending(shard: str) -> str:
    return shard.removesuffix(".tar")


def _sample(file: BinaryIO, shard: str, stem: str, members: list[Member]) -> RawSample:
    captions = Captions({})
    beside = [(found.number, member) for member in members if (found := named(member.name))]
    images = [
        member
        for member in members
        if _ending(member.name).rpartition(".")[2] in IMAGE_ENDINGS and not named(member.name)
    ]
    for member in members:
        ending = _ending(member.name)
        if ending in ("txt", "json"):
            captions |= _captions(file, member, ending)
    key = f"{_without_ending(shard)}/{stem}"
    if not images:
        held = ", ".join(sorted(member.name.rpartition("/")[2] for member in members))
        return RawSample(
            key, shard, "", 0, 0, captions.texts, f"no image among its members ({held[:200]})", captions.faults
        )
    image = images[0]
    references, odd = in_order((number, Place(*member[:3])) for number, member in beside)
    fault = image.fault or (f"{len(images)} images in one sample" if len(images) > 1 else "")
    fault = fault or odd or next((f"reference {number}: {one.fault}" for number, one in beside if one.fault), "")
    place = image.name, image.offset, image.size
    return RawSample(key, shard, *place, captions.texts, fault, captions.faults, references=references)


def _captions(file: BinaryIO, member: Member, ending: str) -> Captions:
    if member.fault:
        return Captions({}, (f"caption {member.fault}",))
    file.seek(member.offset)
    return read_captions(ending, member.size, lambda: file.read(member.size))
