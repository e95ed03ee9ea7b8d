"""Webdataset tars: the members of one stem are a sample, read at random by offset.

Only headers are read to list a tar, by a small strict parser: `tarfile` stops without a word at a damaged header and
follows whatever lengths it is told. Members that climb out, links and devices are counted as faulty, never followed.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from producer.source.caption import Captions, read_captions
from producer.source.shard import IMAGE_ENDINGS, RawSample, Shard, SourceError, is_inside, is_text

_BLOCK = 512
# A pax or long-name header holds a path and a few numbers.
_MAX_HEADER = 1 << 20
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
    """All tars below a folder, or one tar."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise SourceError(f"source.path: {path} does not exist; set it to a .tar or a folder of them")
        self._root = path if path.is_dir() else path.parent
        self._only = None if path.is_dir() else path

    def shards(self) -> list[Shard]:
        """Every .tar below the root, by name."""
        files = [self._only] if self._only else sorted(file for file in self._root.rglob("*.tar") if file.is_file())
        if not files:
            packed = next((file for end in ("*.tar.*", "*.tgz") for file in self._root.rglob(end)), None)
            why = f"only compressed ones like {packed.name}: unpack them" if packed else "nothing to read"
            raise SourceError(f"source.path: {self._root} holds no .tar, {why}")
        return [self._shard(file) for file in files]

    def _shard(self, file: Path) -> Shard:
        found = file.stat()
        name = file.relative_to(self._root).as_posix()
        if not is_text(name):
            raise SourceError(f"source.path: the file name {name!r} is not UTF-8; rename it")
        return Shard(name, f"{found.st_size}-{found.st_mtime_ns}")

    def samples(self, shard: Shard) -> Iterator[RawSample]:
        """The samples of a tar in the order of their first members."""
        groups: dict[str, list[Member]] = {}
        damage = ""
        with (self._root / shard.name).open("rb") as file:
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
        path = self._root / shard
        if not is_inside(shard):
            raise SourceError(f"{shard}: not below {self._root}")
        try:
            with path.open("rb") as file:
                file.seek(offset)
                raw = file.read(size)
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}; curate again if the source moved") from None
        if len(raw) != size:
            raise SourceError(f"{path}: ends before the {size} bytes of {member} at {offset}; curate again")
        return raw


def list_members(file: BinaryIO) -> Iterator[Member]:
    """Every member of a tar by its headers alone; DamageError where one is not what it claims."""
    end = file.seek(0, 2)
    position = 0
    extended: dict[str, str] = {}
    while True:
        file.seek(position)
        try:
            header = tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if type(error) is tarfile.EOFHeaderError:  # type: ignore[attr-defined]
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
                fault = _refusal(name, header)
                yield Member(_safe(name) if fault else name, start, size, fault)
            extended = {}


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


def _refusal(name: str, header: tarfile.TarInfo) -> str:
    if not is_inside(name):
        return f"refused: the name {name[:200]!r} leads out of the shard"
    return "" if header.isreg() and header.type != tarfile.GNUTYPE_SPARSE else "refused: not a plain file"


def _safe(name: str) -> str:
    return name.replace("\0", "%00").replace("..", "%2E%2E").lstrip("/")


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
    images = [member for member in members if _ending(member.name).rpartition(".")[2] in IMAGE_ENDINGS]
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
    fault = image.fault or (f"{len(images)} images in one sample" if len(images) > 1 else "")
    return RawSample(key, shard, image.name, image.offset, image.size, captions.texts, fault, captions.faults)


def _captions(file: BinaryIO, member: Member, ending: str) -> Captions:
    if member.fault:
        return Captions({}, (f"caption {member.fault}",))
    file.seek(member.offset)
    return read_captions(ending, member.size, lambda: file.read(member.size))
