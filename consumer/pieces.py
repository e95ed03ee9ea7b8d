"""The checkpoint's format: safetensors pieces of whole tensors, one file a rank, and a JSON index; no pickle.

    step-00000100/
        rank-00000.safetensors   flat fp32 runs, keyed KIND/NAME/START
        index.json               step, settings, hash of each file, whole shapes, and where each piece belongs
        index.sha256             of index.json, as sha256sum writes it

A piece is a run of the flattened slice that one rank held of a whole tensor, so any layout can read what any other
wrote. Nothing of a file is used before its hash is right. A file's hash is the sha256 of the sha256s of its blocks, so
that several threads can check it while others still wait for the disk.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

VERSION = 2
INDEX, INDEX_HASH = "index.json", "index.sha256"

# What is kept of a weight: itself, Adam's moments, its moving average.
KINDS = ("param", "exp_avg", "exp_avg_sq", "ema")

# Bytes of a file that are hashed at once.
BLOCK = 1 << 24
_THREADS = 4

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

    blocks: str  # sha256 of the sha256s of its blocks
    bytes: int

    @classmethod
    def of(cls, path: Path) -> "File":
        """What the file at `path` is."""
        size = path.stat().st_size
        with ThreadPoolExecutor(_THREADS) as threads:
            digests = threads.map(lambda start: _digest(path, start), range(0, size, BLOCK))
            return cls(hashlib.sha256(b"".join(digests)).hexdigest(), size)


class Hasher:
    """The hash of a file that is being written."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done, self._block = hashlib.sha256(), hashlib.sha256()

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
        return File(self._done.hexdigest(), self.bytes)

    def _end_block(self) -> None:
        self._done.update(self._block.digest())
        self._block = hashlib.sha256()


def _digest(path: Path, start: int) -> bytes:
    """The sha256 of the block of the file at `path` that begins at byte `start`."""
    digest, end = hashlib.sha256(), start + BLOCK
    buffer = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while start < end and (count := file.readinto(buffer[: end - start])):
            digest.update(buffer[:count])
            start += count
    return digest.digest()


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
        if version != VERSION:
            raise CheckpointError(f"format {version}, this program reads {VERSION}: use the release that wrote it")
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
        self._verified: dict[str, Any] = {}

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
        """Check the hashes of `files`, each once."""
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
        try:
            tensor: Tensor = self._open(piece.file).get_tensor(piece.key(kind))
        except SafetensorError as error:
            raise CheckpointError(f"{self.path / piece.file}: {piece.key(kind)}: {error}") from None
        if tensor.dtype != torch.float32 or tensor.shape != (piece.stop - piece.start,):
            got = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise CheckpointError(f"{self.path / piece.file}: {piece.key(kind)}: {got} is not what the index says")
        return tensor

    def _open(self, name: str) -> Any:
        if name not in self._verified:
            _check(self.path / name, self._index.files[name])
            self._verified[name] = safe_open(self.path / name, "pt")
        return self._verified[name]


def _check(path: Path, said: File) -> None:
    """Refuse the file at `path` unless it is what was said."""
    try:
        size = path.stat().st_size
        if size != said.bytes:
            raise CheckpointError(f"{path}: {size} bytes, written with {said.bytes}: truncated or exchanged")
        found = File.of(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    if found.blocks != said.blocks:
        raise CheckpointError(f"{path}: its hash is not the one it was written with: damaged or exchanged")


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
