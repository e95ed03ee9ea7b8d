"""Before the first step: what every rank finds around it, and what is wrong with that, all of it at once.

Each rank writes down what it has (note.py); rank 0 compares the notes and says for each check what it found and what
would mend it (judge.py). Notes travel through the job's store, so a rank that hangs, dies or cannot reach the others is
a finding like any other. Nothing of this touches the model, the checkpoints or a running training.
"""

import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from consumer.config import PreflightConfig
from consumer.preflight.judge import Finding, Wanted, judge
from consumer.preflight.look import PROBE, code_hash, device_of, lacking, look_at, versions
from consumer.preflight.note import Note
from parallel.board import Board
from parallel.mesh import Mesh
from parallel.probe import probe

# What one rank can check by itself: gives what it found, or raises a named error that says what is wrong and the fix.
Check = Callable[[], str]


def examine(
    mesh: Mesh,
    config: PreflightConfig,
    wanted: Wanted,
    *,
    settings: dict[str, str],
    folders: Mapping[str, Path],
    checks: Mapping[str, Check],
    checks_s: float,
) -> list[Finding]:
    """Check everything on every rank; the findings, the same on all. `checks` may take `checks_s` in all."""
    board = Board(mesh, "preflight")
    # A stuck group holds a rank for as long as probe() says; whoever is later than that is not coming.
    longest = 4 * config.collective_s + checks_s
    probes: list[Path] = []
    try:
        written = {name: look_at(path, f"{PROBE}{mesh.rank}-{os.getpid()}", probes) for name, path in folders.items()}
        note = Note(
            rank=mesh.rank,
            host=socket.gethostname(),
            code=code_hash(),
            settings=settings,
            versions=versions(),
            lacking=lacking(),
            device=device_of(mesh),
            folders=written,
            groups=probe(mesh, config.collective_s),
            checks={name: _tried(check) for name, check in checks.items()},
        )
        board.post(note.to_json())
        if mesh.rank == 0:
            findings = judge(_notes(board.collect(config.collective_s + checks_s)), wanted, _sees)
            board.answer(json.dumps([asdict(finding) for finding in findings]).encode())
            return findings
        said = board.hear(2 * longest)
    finally:
        for path in probes:
            with suppress(OSError):
                path.unlink()
    if said is None:
        return [Finding("ranks", f"rank 0 said nothing for {2 * longest:g} s", "its log says why")]
    return [Finding(**finding) for finding in json.loads(said)]


def _notes(raw: Sequence[bytes | None]) -> list[Note | None]:
    notes: list[Note | None] = []
    for note in raw:
        try:
            notes.append(None if note is None else Note.of(note))
        except (TypeError, KeyError, ValueError):
            notes.append(None)
    return notes


def _sees(folder: str, name: str) -> bool:
    return (Path(folder) / name).exists()


def _tried(check: Check) -> tuple[bool, str]:
    try:
        return True, check()
    except (ValueError, OSError) as error:
        if type(error) is ValueError:
            raise  # nobody foresaw it: a bug
        return False, str(error)
