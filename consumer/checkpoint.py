"""Saving at once and resuming: what one rank wrote any layout reads, and a damaged checkpoint is passed over by name.

How a checkpoint is written while training goes on is in saver.py, its format in pieces.py.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from consumer import shelf
from consumer.config import CheckpointConfig
from consumer.ema import Ema
from consumer.pieces import INDEX
from consumer.pieces import CheckpointError as CheckpointError
from consumer.pieces import CheckpointReader as CheckpointReader
from consumer.saver import Saver
from consumer.snapshot import kept
from parallel.engine import Engine
from parallel.mesh import Mesh
from parallel.shard import Shard

log = logging.getLogger(__name__)

T = TypeVar("T")


class _ElsewhereError(CheckpointError):
    """What went wrong went wrong on another rank."""


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds beside the tensors."""

    step: int  # steps done
    extra: dict[str, Any]  # what the saver was given


def save(
    config: CheckpointConfig,
    engine: Engine,
    ema: Ema | None,
    step: int,
    resolved: dict[str, Any],
    extra: dict[str, Any],
    mesh: Mesh,
) -> Path:
    """Save after `step` steps, on every rank at once, and wait; the published folder.

    `resolved` (the settings) and `extra` are kept as JSON. Raises CheckpointError on every rank if any of them could
    not write; the checkpoints before it are then as they were.
    """
    saver = Saver(config.model_copy(update={"give_up_s": 0.0}), engine, ema, mesh, resolved)
    try:
        saver.save(step, extra, wait=True)
    finally:
        saver.close()
    return shelf.folder(config.path, step)


def load(engine: Engine, ema: Ema | None, found: Path | CheckpointReader, mesh: Mesh) -> Loaded:
    """Make engine and average what a checkpoint holds, whatever layout wrote it; what else is in it.

    Every rank calls it. Files that a reader from `newest` has verified are not verified again. Raises CheckpointError
    on all ranks, with nothing changed yet, if the checkpoint is damaged, of another model, or holds no average where
    one is wanted.
    """
    shards = list(engine.shards())
    reader = _together(mesh, lambda: _fitting(found, engine.shapes, shards, ema))
    with torch.no_grad():
        for shard in shards:
            for kind, live in kept(shard, ema).items():
                live.copy_(reader.run(shard.name, kind, shard.place, shard.start, shard.stop))
    engine.loaded(reader.updates)
    return Loaded(reader.step, reader.extra)


def newest(root: Path, mesh: Mesh | None = None) -> CheckpointReader | None:
    """The newest checkpoint under `root` whose every byte is as written; None if there is none.

    Damaged ones are named in a warning and passed over. With `mesh` every rank calls it and verifies a share.
    """
    step = _newest(root, None, mesh)
    while step is not None:
        reader = _sound(shelf.folder(root, step), step, mesh)
        if reader:
            return reader
        step = _newest(root, step, mesh)
    return None


def latest(root: Path, mesh: Mesh | None = None) -> Path | None:
    """The folder of the newest sound checkpoint under `root`, as `newest` finds it."""
    found = newest(root, mesh)
    return found.path if found else None


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
        try:
            raise error
        finally:
            del error  # or it and this frame hold each other, and what was read with them
    return done


def _newest(root: Path, below: int | None, mesh: Mesh | None) -> int | None:
    """The newest step under `root`, earlier than `below`; all ranks go by what the first sees."""
    steps = [step for step in shelf.steps(root) if below is None or step < below]
    newest = max(steps, default=-1)
    if mesh is not None:
        seen = torch.tensor([newest if mesh.rank == 0 else -1], device=mesh.device)
        newest = int(mesh.max(seen).item())
    return None if newest < 0 else newest


def _sound(path: Path, step: int, mesh: Mesh | None) -> CheckpointReader | None:
    """The checkpoint at `path`, if it is as it was written; a warning says where not."""
    try:
        return _together(mesh, lambda: _verified(path, step, mesh))
    except CheckpointError as error:
        if not isinstance(error, _ElsewhereError):
            log.warning("damaged checkpoint passed over: %s", error)
        return None


def _verified(path: Path, step: int, mesh: Mesh | None) -> CheckpointReader:
    """A reader that has checked the index, and this rank's share of the files."""
    reader = CheckpointReader(path)
    if reader.step != step:
        raise CheckpointError(f"{path / INDEX}: is of step {reader.step}: exchanged")
    reader.verify(reader.files if mesh is None else reader.files[mesh.rank :: mesh.world])
    return reader


def _fitting(
    found: Path | CheckpointReader, shapes: dict[str, tuple[int, ...]], shards: Sequence[Shard], ema: Ema | None
) -> CheckpointReader:
    """A reader of the checkpoint `found`, every file that `shards` need of it verified."""
    reader = CheckpointReader(found) if isinstance(found, Path) else found
    path = reader.path
    wrong = [
        name for name in sorted(shapes.keys() | reader.shapes.keys()) if shapes.get(name) != reader.shapes.get(name)
    ]
    if wrong:
        there, here = reader.shapes.get(wrong[0], "absent"), shapes.get(wrong[0], "absent")
        raise CheckpointError(
            f"{path}: of another model: {wrong[0]} is {there} there and {here} here, {len(wrong)} differ"
        )
    for shard in shards:
        lacking = kept(shard, ema).keys() - set(reader.kinds(shard.name))
        if lacking:
            raise CheckpointError(f"{path}: holds no {', '.join(sorted(lacking))} of {shard.name}")
        reader.verify(reader.files_of(shard.name, shard.place, shard.start, shard.stop))
    return reader
