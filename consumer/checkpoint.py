"""Saving and resuming a training job: every rank writes what it owns, one rename publishes, any layout reads.

A save is a snapshot of the rank's pieces in memory and then a write of that snapshot. What is written is the format of
pieces.py, in a folder aside that becomes `step-N` in one rename when the files of all ranks are on disk: a reader never
sees half of one, and a job killed at any moment leaves the one before as the newest.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from consumer.ema import Ema
from consumer.pieces import INDEX, INDEX_HASH, File, Index, Piece, index_hash, piece_of
from consumer.pieces import CheckpointError as CheckpointError
from consumer.pieces import CheckpointReader as CheckpointReader
from parallel.engine import Engine
from parallel.mesh import Mesh
from parallel.shard import Shard

log = logging.getLogger(__name__)

T = TypeVar("T")

# Folders being written or removed; whoever starts the next save clears them away.
_ASIDE = ".aside-"


class _ElsewhereError(CheckpointError):
    """What went wrong went wrong on another rank."""


class CheckpointConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    path: Path  # folder of the checkpoints
    every: int = Field(default=1000, gt=0)  # steps between saves
    keep: int = Field(default=3, ge=1)  # newest ones that stay; with 1 a damaged one has none before it


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A rank's own pieces at one moment, in host memory that training no longer touches."""

    pieces: list[Piece]
    tensors: dict[str, Tensor]


def save(
    config: CheckpointConfig,
    engine: Engine,
    ema: Ema | None,
    step: int,
    resolved: dict[str, Any],
    extra: dict[str, Any],
    mesh: Mesh,
) -> Path:
    """Save after `step` steps, on every rank at once; the published folder.

    `resolved` (the settings) and `extra` are kept as JSON. Raises CheckpointError on every rank if any of them could
    not write; the checkpoints before it are then as they were.
    """
    final = _folder(config.path, step)
    aside = config.path / f"{_ASIDE}{final.name}"
    try:
        _together(mesh, lambda: _prepare(aside) if mesh.rank == 0 else None)
        snapshot = take(engine, ema, mesh)
        _together(mesh, lambda: _write(aside, snapshot, mesh.rank))
        head = Index(step, engine.updates, resolved, extra, {}, engine.shapes, ())
        _together(mesh, lambda: _publish(aside, final, head, mesh.world) if mesh.rank == 0 else None)
    finally:
        if mesh.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
    if mesh.rank == 0:
        _prune(config, step)
    return final


def take(engine: Engine, ema: Ema | None, mesh: Mesh) -> Snapshot:
    """Copies of all that this rank owns."""
    pieces, tensors = [], {}
    for shard in engine.shards():
        if not shard.owned:
            continue
        live = _kept(shard, ema)
        piece = Piece(_file(mesh.rank), shard.name, tuple(live), shard.place, shard.local, shard.start, shard.stop)
        pieces.append(piece)
        for kind, tensor in live.items():
            tensors[piece.key(kind)] = tensor.to("cpu", torch.float32, copy=True)
    return Snapshot(pieces, tensors)


def load(engine: Engine, ema: Ema | None, path: Path, mesh: Mesh) -> int:
    """Make engine and average what the checkpoint at `path` holds, whatever layout wrote it; the steps behind it.

    Every rank calls it. Raises CheckpointError on all of them, with nothing changed yet, if the checkpoint is damaged,
    of another model, or holds no average where one is wanted.
    """
    shards = list(engine.shards())
    reader = _together(mesh, lambda: _fitting(path, engine.shapes, shards, ema))
    with torch.no_grad():
        for shard in shards:
            for kind, live in _kept(shard, ema).items():
                live.copy_(reader.run(shard.name, kind, shard.place, shard.start, shard.stop))
    engine.loaded(reader.updates)
    return reader.step


def latest(root: Path, mesh: Mesh | None = None) -> Path | None:
    """The newest checkpoint under `root` whose every byte is as written; None if there is none.

    Damaged ones are named in a warning and passed over. With `mesh` every rank calls it and verifies a share.
    """
    step = _newest(root, None, mesh)
    while step is not None and not _sound(_folder(root, step), step, mesh):
        step = _newest(root, step, mesh)
    return None if step is None else _folder(root, step)


def _folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def _file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _kept(shard: Shard, ema: Ema | None) -> dict[str, Tensor]:
    """The live tensors of a shard, the average among them."""
    return shard.tensors if ema is None else shard.tensors | {"ema": ema.of(shard)}


def _together(mesh: Mesh | None, act: Callable[[], T]) -> T:
    """Do `act` on every rank; if it fails on any, CheckpointError on all."""
    error: CheckpointError | None = None
    try:
        done = act()
    except CheckpointError as wrong:
        error = wrong
    except (OSError, SafetensorError) as wrong:
        error = CheckpointError(str(wrong))
    if mesh is not None and not mesh.every(error is None):
        error = error or _ElsewhereError("another rank could not; its log says why")
    if error is not None:
        raise error
    return done


def _prepare(aside: Path) -> None:
    """An empty folder to write in; whatever a killed save left is cleared away."""
    aside.parent.mkdir(parents=True, exist_ok=True)
    for left in aside.parent.glob(f"{_ASIDE}*"):
        shutil.rmtree(left)
    aside.mkdir()


def _write(aside: Path, snapshot: Snapshot, rank: int) -> None:
    """This rank's file, on disk, and beside it what the index will say of it."""
    path = aside / _file(rank)
    save_file(snapshot.tensors, path)
    _sync(path)
    said = {"file": asdict(File.of(path)), "pieces": [asdict(piece) for piece in snapshot.pieces]}
    _put(path.with_suffix(".json"), json.dumps(said).encode())


def _publish(aside: Path, final: Path, head: Index, world: int) -> None:
    """Complete `head` with what the ranks wrote, and give the folder its name."""
    files, pieces = {}, []
    for rank in range(world):
        part = (aside / _file(rank)).with_suffix(".json")
        said = json.loads(part.read_bytes())
        files[_file(rank)] = File(**said["file"])
        pieces += [piece_of(piece) for piece in said["pieces"]]
        part.unlink()
    raw = replace(head, files=files, pieces=tuple(pieces)).to_json()
    _put(aside / INDEX, raw)
    _put(aside / INDEX_HASH, index_hash(raw))
    _sync(aside)
    if final.exists():
        _retire(final)
    os.replace(aside, final)
    _sync(final.parent)


def _prune(config: CheckpointConfig, newest: int) -> None:
    """Remove all but the last ones up to `newest`, the one just saved."""
    steps = sorted(_steps(config.path), reverse=True)
    try:
        for later in (step for step in steps if step > newest):
            _retire(_folder(config.path, later))
        for old in [step for step in steps if step <= newest][config.keep :]:
            # From the first moment of its removal it no longer looks like a checkpoint.
            aside = config.path / f"{_ASIDE}step-{old:08d}"
            os.replace(_folder(config.path, old), aside)
            shutil.rmtree(aside)
    except OSError as error:
        log.warning("old checkpoint not removed: %s", error)


def _retire(folder: Path) -> None:
    """Rename a checkpoint that training went back behind, being damaged or not wanted: it is no longer the newest."""
    retired = folder.parent / f"retired-{folder.name}"
    shutil.rmtree(retired, ignore_errors=True)
    os.replace(folder, retired)
    log.warning("training went back behind %s: renamed to %s", folder, retired.name)


def _steps(root: Path) -> list[int]:
    """The steps of the checkpoints under `root`."""
    if not root.is_dir():
        return []
    return [int(path.name[5:]) for path in root.iterdir() if re.fullmatch(r"step-\d{8,}", path.name)]


def _newest(root: Path, below: int | None, mesh: Mesh | None) -> int | None:
    """The newest step under `root`, earlier than `below`; all ranks go by what the first sees."""
    steps = [step for step in _steps(root) if below is None or step < below]
    newest = max(steps, default=-1)
    if mesh is not None:
        seen = torch.tensor([newest if mesh.rank == 0 else -1], device=mesh.device)
        newest = int(mesh.max(seen).item())
    return None if newest < 0 else newest


def _sound(path: Path, step: int, mesh: Mesh | None) -> bool:
    """Whether the checkpoint at `path` is as it was written; a warning says where not."""
    try:
        _together(mesh, lambda: _verify(path, step, mesh))
    except CheckpointError as error:
        if not isinstance(error, _ElsewhereError):
            log.warning("damaged checkpoint passed over: %s", error)
        return False
    return True


def _verify(path: Path, step: int, mesh: Mesh | None) -> None:
    """Check the index, and this rank's share of the files."""
    reader = CheckpointReader(path)
    if reader.step != step:
        raise CheckpointError(f"{path / INDEX}: is of step {reader.step}: exchanged")
    reader.verify(reader.files if mesh is None else reader.files[mesh.rank :: mesh.world])


def _fitting(
    path: Path, shapes: dict[str, tuple[int, ...]], shards: Sequence[Shard], ema: Ema | None
) -> CheckpointReader:
    """A reader of the checkpoint at `path`, every file that `shards` need of it verified."""
    reader = CheckpointReader(path)
    wrong = [
        name for name in sorted(shapes.keys() | reader.shapes.keys()) if shapes.get(name) != reader.shapes.get(name)
    ]
    if wrong:
        there, here = reader.shapes.get(wrong[0], "absent"), shapes.get(wrong[0], "absent")
        raise CheckpointError(
            f"{path}: of another model: {wrong[0]} is {there} there and {here} here, {len(wrong)} differ"
        )
    for shard in shards:
        lacking = _kept(shard, ema).keys() - set(reader.kinds(shard.name))
        if lacking:
            raise CheckpointError(f"{path}: holds no {', '.join(sorted(lacking))} of {shard.name}")
        reader.verify(reader.files_of(shard.name, shard.place, shard.start, shard.stop))
    return reader


def _put(path: Path, data: bytes) -> None:
    """Write `data` to `path`, on disk when this returns."""
    path.write_bytes(data)
    _sync(path)


def _sync(path: Path) -> None:
    """Have what was written to a file or folder on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
