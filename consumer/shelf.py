"""The folder of a run's checkpoints: their names, how one appears in it, which stay and what is cleared away."""

import json
import logging
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from consumer.pieces import INDEX, INDEX_HASH, File, Index, Piece, index_hash, piece_of

log = logging.getLogger(__name__)

# Folders being written or removed; whoever starts next clears them away.
_ASIDE = ".aside-"
_RETIRED = "retired-"


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay beside the newest, which always does."""

    keep: int  # so many newest ones, itself among them
    keep_every: int  # and, for ever, the first at or after each multiple of so many steps; 0: none
    max_age_h: float  # but not those older than the newest by more, unless they stay for ever; 0: any age


def folder(root: Path, step: int) -> Path:
    """Where the checkpoint of `step` is."""
    return root / f"step-{step:08d}"


def aside(root: Path, step: int, attempt: str) -> Path:
    """Where it is while it is written."""
    return root / f"{_ASIDE}{folder(root, step).name}-{attempt}"


def rank_file(rank: int) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05d}.safetensors"


def steps(root: Path) -> list[int]:
    """The steps of the checkpoints under `root`."""
    if not root.is_dir():
        return []
    return [int(path.name[5:]) for path in root.iterdir() if re.fullmatch(r"step-\d{8,}", path.name)]


def clear(root: Path) -> None:
    """Remove what a killed job left half written or half removed."""
    try:
        for left in root.glob(f"{_ASIDE}*"):
            shutil.rmtree(left)
    except OSError as error:
        log.warning("%s: left from a killed save, not removed: %s", error.filename, error.strerror)


def publish(written: Path, final: Path, head: Index, world: int) -> None:
    """Complete `head` with what the ranks said of their files in `written`, and give that folder its name."""
    files: dict[str, File] = {}
    pieces: list[Piece] = []
    parts = [said_of(written / rank_file(rank)) for rank in range(world)]
    for rank, part in enumerate(parts):
        said = json.loads(part.read_bytes())
        files[rank_file(rank)] = File(**said["file"])
        pieces += map(piece_of, said["pieces"])
    for part in parts:
        part.unlink()
    raw = replace(head, files=files, pieces=tuple(pieces)).to_json()
    put(written / INDEX, raw)
    put(written / INDEX_HASH, index_hash(raw))
    sync(written)
    if final.exists():
        _retire(final)
    os.replace(written, final)
    sync(final.parent)


def prune(root: Path, keep: Retention, newest: int) -> None:
    """Remove what need not stay, `newest` having just been saved; a warning says what could not be removed."""
    there = steps(root)
    try:
        for later in (step for step in there if step > newest):
            _retire(folder(root, later))
        earlier = [step for step in there if step <= newest]
        for old in sorted(set(earlier) - _staying(root, keep, earlier)):
            _remove(folder(root, old))
        retired = sorted(root.glob(f"{_RETIRED}step-*"), reverse=True)
        for path in retired[keep.keep :]:
            _remove(path)
    except OSError as error:
        log.warning("old checkpoint not removed: %s", error)


def put(path: Path, data: bytes) -> None:
    """Write `data` to `path`, on disk when this returns."""
    path.write_bytes(data)
    sync(path)


def sync(path: Path) -> None:
    """Have what was written to a file or folder on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def said_of(path: Path) -> Path:
    """Where a rank says what its file at `path` is, until the index does."""
    return path.with_suffix(".json")


def _staying(root: Path, keep: Retention, there: list[int]) -> set[int]:
    """Those of the steps `there` that stay."""
    ordered = sorted(there, reverse=True)
    newest = ordered[:1]
    stay = set(ordered[: keep.keep])
    if keep.max_age_h:
        # By the files' own times alone: this machine's clock may not be the file server's.
        born = {step: folder(root, step).stat().st_mtime for step in [*newest, *stay]}
        stay = {step for step in stay if born[newest[0]] - born[step] <= 3600 * keep.max_age_h}
    if keep.keep_every:
        first = {step // keep.keep_every: step for step in ordered}
        stay |= {step for multiple, step in first.items() if multiple}
    return stay | set(newest)


def _remove(path: Path) -> None:
    """Remove a checkpoint; from the first moment it no longer looks like one."""
    going = path.parent / f"{_ASIDE}{path.name}-removed"
    os.replace(path, going)
    shutil.rmtree(going)


def _retire(path: Path) -> None:
    """Rename a checkpoint that training went back behind, being damaged or not wanted: it is no longer the newest."""
    retired = path.parent / f"{_RETIRED}{path.name}"
    shutil.rmtree(retired, ignore_errors=True)
    os.replace(path, retired)
    log.warning("training went back behind %s: renamed to %s", path, retired.name)
