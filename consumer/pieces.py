"""The checkpoint's format: safetensors pieces of whole tensors, one file a rank, and a JSON index; no pickle.

    step-00000100/
        rank-00000.safetensors   flat fp32 runs, keyed KIND/NAME/START
        index.json               step, settings, checksum of each file, whole shapes, and where each piece belongs
        index.sha256             of index.json, as sha256sum writes it

A piece is a run of the flattened slice that one rank held of a whole tensor, so any layout can read what any other
wrote. Nothing of a file is used before its checksum is right: the xxh3-128 of the xxh3-128s of its blocks, so that
several threads can check it. It tells damage, in 2^-128 of cases not; who can write the files can also write checksums
that fit, as with any hash that nobody signs.
"""

import ctypes
import errno
import hashlib
import json
import math
import mmap
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

VERSION = 3  # 2 had sha256 for the files
INDEX, INDEX_HASH = "index.json", "index.sha256"

# What is kept of a weight: itself, Adam's moments, its moving average.
KINDS = ("param", "exp_avg", "exp_avg_sq", "ema")

# Bytes of a file that are hashed at once.
BLOCK = 1 << 24
_THREADS = 4
_HASHES: dict[str, Callable[[], Any]] = {"xxh3-128": xxhash.xxh3_128, "sha256": hashlib.sha256}
_POPULATE_READ = 22  # MADV_POPULATE_READ of linux/mman.h, from Linux 5.14 on

# (dim, start, stop) of a slice of a whole tensor; None for all of it.
Slice = tuple[int, int, int] | None


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or is damaged, incomplete or of another model; names the file and the reason."""


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `stop` of the flattened `place` of tensor `name`, for each of `kinds`, in `file`."""

    file: str
    name: str
    kinds: tuple[str, ...]
    place: Slice
    local: tuple[int, ...]  # shape of the slice at `place`
    start: int
    stop: int

    def key(self, kind: str) -> str:
        """The piece's name in its file."""
        return f"{kind}/{self.name}/{self.start}"


@dataclass(frozen=True)
class File:
    """What a file must be."""

    checksum: str  # "KIND:" and the hash of the hashes of its blocks
    bytes: int

    @classmethod
    def of(cls, whole: Tensor, kind: str = "xxh3-128") -> "File":
        """What a file of these bytes is. Raises OSError where the disk does."""
        checksum = _HASHES[kind]()
        with ThreadPoolExecutor(_THREADS) as threads:
            for digest in threads.map(lambda block: _digest(block, kind), whole.split(BLOCK) if len(whole) else ()):
                checksum.update(digest)
        return cls(f"{kind}:{checksum.hexdigest()}", len(whole))


class Hasher:
    """The checksum of a file that is being written."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done, self._block = xxhash.xxh3_128(), xxhash.xxh3_128()

    def update(self, data: memoryview) -> None:
        """The next bytes."""
        while data:
            room = BLOCK - self.bytes % BLOCK
            self._block.update(data[:room])
            self.bytes += min(room, len(data))
            data = data[room:]
            if self.bytes % BLOCK == 0:
                self._end_block()

    def file(self) -> File:
        """What the file with these bytes is."""
        if self.bytes % BLOCK:
            self._end_block()
        return File(f"xxh3-128:{self._done.hexdigest()}", self.bytes)

    def _end_block(self) -> None:
        self._done.update(self._block.digest())
        self._block = xxhash.xxh3_128()


def mapped(path: Path) -> Tensor:
    """The bytes of the file at `path`, uint8 [size], mapped: hashing and copying share the page cache's own pages."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY), dtype=torch.uint8)


def _digest(block: Tensor, kind: str) -> bytes:
    """The hash of a mapped block. Raises OSError where the disk does: a bare read of the memory would be a SIGBUS."""
    start = block.data_ptr()
    before = start % mmap.PAGESIZE
    if _libc.madvise(start - before, len(block) + before, _POPULATE_READ) and ctypes.get_errno() != errno.EINVAL:
        raise OSError(ctypes.get_errno(), "not readable")
    digest = _HASHES[kind]()
    digest.update(block.numpy().data)
    return bytes(digest.digest())


_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@dataclass(frozen=True)
class Index:
    """All that a checkpoint says of itself."""

    step: int  # steps done
    updates: int  # optimizer updates among them
    config: dict[str, Any]
    extra: dict[str, Any]
    files: dict[str, File]
    shapes: dict[str, tuple[int, ...]]
    pieces: tuple[Piece, ...]

    def to_json(self) -> bytes:
        """The index as the bytes of index.json."""
        files = {name: vars(file) for name, file in self.files.items()}
        said = vars(self) | {"files": files, "pieces": [vars(piece) for piece in self.pieces]}
        return json.dumps({"version": VERSION, **said}).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> "Index":
        """The index in verified bytes."""
        said = json.loads(raw)
        version = said.pop("version")
        if version == 2:
            said["files"] = {
                name: {"checksum": f"sha256:{file['blocks']}", "bytes": file["bytes"]}
                for name, file in said["files"].items()
            }
        elif version != VERSION:
            raise CheckpointError(
                f"format {version}, this program reads 2 and {VERSION}: use the release that wrote it"
            )
        said["files"] = {name: File(**file) for name, file in said["files"].items()}
        said["shapes"] = {name: tuple(shape) for name, shape in said["shapes"].items()}
        said["pieces"] = tuple(piece_of(piece) for piece in said["pieces"])
        return cls(**said)


def piece_of(said: dict[str, Any]) -> Piece:
    """A piece from its JSON."""
    place = None if said["place"] is None else tuple(said["place"])
    return Piece(**said | {"kinds": tuple(said["kinds"]), "place": place, "local": tuple(said["local"])})


class CheckpointReader:
    """A checkpoint's contents, whole, on one process. Raises CheckpointError for whatever is not as it was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._index = _read_index(path)
        self._by_name: dict[str, list[Piece]] = {}
        for piece in self._index.pieces:
            self._by_name.setdefault(piece.name, []).append(piece)
        self._opened: dict[str, dict[str, Tensor]] = {}

    @property
    def step(self) -> int:
        """Training steps behind it."""
        return self._index.step

    @property
    def updates(self) -> int:
        """Optimizer updates behind it."""
        return self._index.updates

    @property
    def config(self) -> dict[str, Any]:
        """The resolved settings it was trained with."""
        return self._index.config

    @property
    def extra(self) -> dict[str, Any]:
        """What the trainer gave to keep beside the tensors."""
        return self._index.extra

    @property
    def files(self) -> list[str]:
        """The files that hold its tensors."""
        return sorted(self._index.files)

    @cached_property
    def names(self) -> list[str]:
        """The weights' names."""
        return sorted(self._index.shapes)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The whole shape of every weight."""
        return self._index.shapes

    def kinds(self, name: str) -> tuple[str, ...]:
        """What is kept of the weight called `name`; never-trained ones have no moments."""
        return self._pieces(name)[0].kinds

    def verify(self, files: Iterable[str]) -> None:
        """Check the checksums of `files`, each once."""
        for name in files:
            self._open(name)

    def files_of(self, name: str, place: Slice, start: int, stop: int) -> set[str]:
        """The files that `run` reads for this."""
        same = self._overlapping(name, place, start, stop)
        return {piece.file for piece in (self._pieces(name) if same is None else same)}

    def run(self, name: str, kind: str, place: Slice, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of the flattened slice at `place` of a weight, fp32 [stop - start]."""
        same = self._overlapping(name, place, start, stop)
        if same is None:
            whole = self.whole(name, kind)
            part = whole if place is None else whole.narrow(place[0], place[1], place[2] - place[1])
            return part.reshape(-1)[start:stop]
        if len(same) == 1:
            return self._tensor(same[0], kind)[start - same[0].start : stop - same[0].start]
        out, filled = torch.empty(stop - start), 0
        for piece in same:
            low, high = max(start, piece.start), min(stop, piece.stop)
            out[low - start : high - start] = self._tensor(piece, kind)[low - piece.start : high - piece.start]
            filled += high - low
        assert filled == stop - start, f"pieces of {name} overlap"
        return out

    def whole(self, name: str, kind: str) -> Tensor:
        """A whole weight, fp32, or one of its moments or its average."""
        pieces = self._pieces(name)
        out = torch.empty(self._index.shapes[name])
        slices = {piece.place: torch.empty(piece.local) for piece in pieces}
        for piece in pieces:
            slices[piece.place].view(-1)[piece.start : piece.stop] = self._tensor(piece, kind)
        for place, local in slices.items():
            (out if place is None else out.narrow(place[0], place[1], place[2] - place[1])).copy_(local)
        return out

    def _pieces(self, name: str) -> list[Piece]:
        if name not in self._by_name:
            raise CheckpointError(f"{self.path}: has no weight {name!r}")
        return self._by_name[name]

    def _overlapping(self, name: str, place: Slice, start: int, stop: int) -> list[Piece] | None:
        """The pieces that hold elements `start` to `stop`, or None if it was written in other slices."""
        pieces = self._pieces(name)
        if any(piece.place == place for piece in pieces):
            return [piece for piece in pieces if piece.place == place and piece.start < stop and start < piece.stop]
        return None

    def _tensor(self, piece: Piece, kind: str) -> Tensor:
        if kind not in piece.kinds:
            raise CheckpointError(f"{self.path}: holds no {kind} of {piece.name}, only {', '.join(piece.kinds)}")
        tensor = self._open(piece.file).get(piece.key(kind))
        if tensor is None or tensor.shape != (piece.stop - piece.start,):
            got = "nothing" if tensor is None else f"{len(tensor)} elements"
            raise CheckpointError(f"{self.path / piece.file}: {piece.key(kind)}: {got} is not what the index says")
        return tensor

    def _open(self, name: str) -> dict[str, Tensor]:
        if name not in self._opened:
            self._opened[name] = _tensors(self.path / name, self._verified(name))
        return self._opened[name]

    def _verified(self, name: str) -> Tensor:
        """The bytes of a file, mapped, and refused unless they are as written."""
        path, said = self.path / name, self._index.files[name]
        try:
            whole = mapped(path)
            if len(whole) != said.bytes:
                raise CheckpointError(f"{path}: {len(whole)} bytes, written with {said.bytes}: truncated or exchanged")
            found = File.of(whole, said.checksum.partition(":")[0])
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from None
        if found != said:
            raise CheckpointError(f"{path}: its checksum is not the one it was written with: damaged or exchanged")
        return whole


def _tensors(path: Path, whole: Tensor) -> dict[str, Tensor]:
    """The flat fp32 tensors in a safetensors file, which are views of it."""
    try:
        body = 8 + int.from_bytes(whole[:8].numpy().tobytes(), "little")
        header = json.loads(whole[8:body].numpy().tobytes())
        ranges = {key: said["data_offsets"] for key, said in header.items() if said["dtype"] == "F32"}
        return {key: whole[body + start : body + end].view(torch.float32) for key, (start, end) in ranges.items()}
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint's safetensors: {error}") from None


def _read_index(path: Path) -> Index:
    """The index of the checkpoint at `path`, its hash verified."""
    try:
        raw, said = (path / INDEX).read_bytes(), (path / INDEX_HASH).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}") from None
    if said != index_hash(raw):
        raise CheckpointError(f"{path / INDEX}: its sha256 is not the one in {INDEX_HASH}: one of them is damaged")
    try:
        index = Index.from_json(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{path / INDEX}: {error}") from None
    held: Counter[str] = Counter()
    for piece in index.pieces:
        held[piece.name] += piece.stop - piece.start
    for name, shape in index.shapes.items():
        if held[name] != math.prod(shape):
            raise CheckpointError(f"{path / INDEX}: holds {held[name]} of the {math.prod(shape)} elements of {name}")
    return index


def index_hash(raw: bytes) -> bytes:
    """The contents of index.sha256 for an index.json of `raw`."""
    return f"{hashlib.sha256(raw).hexdigest()}  {INDEX}\n".encode()
