"""A rank's pieces at one moment, in host memory that is allocated once, and the safetensors file written from it."""

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from consumer.ema import Ema
from consumer.pieces import BLOCK, Hasher, Piece
from consumer.shelf import put, rank_file, said_of
from parallel.engine import Engine
from parallel.mesh import Mesh
from parallel.shard import Shard

log = logging.getLogger(__name__)


class CalledOffError(Exception):
    """The write was not wanted any more."""


class Snapshot:
    """Copies of all that this rank owns, in one fp32 buffer laid out as the data of its file.

    The buffer is as large as the rank's share of the checkpoint: 16 bytes a trained element. On CUDA it is pinned.
    """

    def __init__(self, engine: Engine, ema: Ema | None, mesh: Mesh) -> None:
        self._engine, self._ema = engine, ema
        cuda = mesh.device.type == "cuda"
        self._file = rank_file(mesh.rank)
        self._pieces: list[Piece] = []
        header, end = {}, 0
        for shard, live in self._owned():
            kinds, size = tuple(live), shard.stop - shard.start
            piece = Piece(self._file, shard.name, kinds, shard.place, shard.local, shard.start, shard.stop)
            self._pieces.append(piece)
            for kind in kinds:
                header[piece.key(kind)] = {"dtype": "F32", "shape": [size], "data_offsets": [end, end + 4 * size]}
                end += 4 * size
        self._header = _header(header)
        self._buffer = torch.empty(end // 4)
        self._buffer.fill_(0)  # the pages are there before the first save
        self._pinned = cuda and _pin(self._buffer)
        self._stream = torch.cuda.Stream(mesh.device) if cuda else None
        self._live: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """Size of this rank's file."""
        return len(self._header) + self._buffer.nbytes

    def mark(self) -> None:
        """What is live now is what `take` copies: nothing may change it before that returns."""
        self._live = [tensor for _, live in self._owned() for tensor in live.values()]
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    @torch.no_grad()
    def take(self) -> None:
        """Copy what was marked, beside the work of other threads."""
        copies = list(self._buffer.split([tensor.numel() for tensor in self._live]))
        with torch.cuda.stream(self._stream):
            # One call, which does not hold the interpreter.
            torch._foreach_copy_(copies, self._live, non_blocking=self._pinned)
        if self._stream:
            self._stream.synchronize()

    def write(self, folder: Path, called_off: threading.Event) -> None:
        """This rank's file in `folder`, on disk, and beside it what the index will say of it.

        Raises OSError, or CalledOffError soon after `called_off` is set; none of it is left then.
        """
        path = folder / self._file
        try:
            folder.mkdir(parents=True, exist_ok=True)
            hasher = Hasher()
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                for chunk in self._chunks():
                    if called_off.is_set():
                        raise CalledOffError
                    hasher.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            said = {"file": asdict(hasher.file())}
            put(said_of(path), json.dumps(said | {"pieces": [asdict(piece) for piece in self._pieces]}).encode())
        except BaseException:
            for left in (path, path.with_suffix(".part"), said_of(path)):
                _unlink(left)
            raise

    def close(self) -> None:
        """Let go of the buffer; no write may be going on."""
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._buffer.data_ptr())
        self._buffer, self._pinned = torch.empty(0), False

    def _owned(self) -> Iterator[tuple[Shard, dict[str, Tensor]]]:
        for shard in self._engine.shards():
            if shard.owned:
                yield shard, kept(shard, self._ema)

    def _chunks(self) -> Iterator[memoryview]:
        yield memoryview(self._header)
        data = memoryview(self._buffer.numpy().data).cast("B") if len(self._buffer) else memoryview(b"")
        for start in range(0, len(data), BLOCK):
            yield data[start : start + BLOCK]


def kept(shard: Shard, ema: Ema | None) -> dict[str, Tensor]:
    """The live tensors of a shard, the average among them."""
    return shard.tensors if ema is None else shard.tensors | {"ema": ema.of(shard)}


def _header(tensors: Mapping[str, Mapping[str, object]]) -> bytes:
    """What a safetensors file begins with: the length of a JSON object, and the object, padded to whole words."""
    raw = json.dumps(tensors, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _pin(buffer: Tensor) -> bool:
    """Pin memory as it is: torch's own pinned allocations are rounded up to a power of two."""
    if not buffer.nbytes:
        return False
    code = int(torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0))
    if code:
        log.warning("%.1f GB for checkpoints not pinned (CUDA error %d): copies wait", buffer.nbytes / 1e9, code)
    return not code


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        log.info("%s: not removed", path)
