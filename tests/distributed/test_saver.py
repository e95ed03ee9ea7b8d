"""A save while training goes on is the save that would have been waited for, appears once, and keeps what was said."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from consumer import shelf
from consumer.checkpoint import latest, load
from consumer.ema import Ema
from consumer.saver import Said, Saver
from consumer.shelf import Retention
from consumer.snapshot import Snapshot
from parallel.engine import Engine
from parallel.mesh import Mesh
from tests.distributed import tiny
from tests.distributed.ranks import Ranks
from tests.distributed.saving import (
    RESOLVED,
    config,
    ended,
    look,
    names,
    nudge,
    start,
    step_beside,
    steps,
)
from tests.distributed.saving import here as here
from tests.distributed.saving import weights as weights


@pytest.fixture
def job(weights: Path, here: Mesh) -> tuple[Engine, Ema]:
    """Its engine and average."""
    return start(weights, here)


def both_ways_on_rank(folder: str, tp: int, sp: bool) -> list[Any]:
    """Save three times, each waited for and then while steps are taken: how those ended, and what is left running."""
    here = tiny.mesh(tp, sp)
    engine, ema = start(Path(folder), here)
    waiting, beside = (Saver(config(Path(folder) / name, 9), engine, ema, here, RESOLVED) for name in ("sync", "async"))
    steps(engine, ema, 0, 2)
    reports, done = [], 2
    for _ in range(3):
        waiting.save(done, {"at": done}, wait=True)
        beside.save(done, {"at": done})
        report = None
        while report is None:
            report = step_beside(beside, engine, ema, done)
            done += 1
        reports.append([report.step, report.published])
    waiting.close()
    beside.close()
    here.close()
    left = [thread.name for thread in threading.enumerate() if thread.name == "checkpoint"]
    return [reports, left + [child.name() for child in psutil.Process().children()]]


@pytest.mark.parametrize(("world", "tp", "sp"), [(4, 2, True), (1, 1, False)])
def test_a_save_beside_training_has_the_bytes_of_one_waited_for(
    ranks: Ranks, weights: Path, tmp_path: Path, world: int, tp: int, sp: bool
) -> None:
    os.link(weights / "weights.safetensors", tmp_path / "weights.safetensors")
    results = ranks.run(world, both_ways_on_rank, folder=tmp_path, tp=tp, sp=sp)
    assert all(result == results[0] for result in results)
    reports, left = results[0]
    assert not left and all(published for _, published in reports)
    saved = [f"step-{step:08d}" for step, _ in reports]
    assert names(tmp_path / "async") == names(tmp_path / "sync") == saved
    for folder in saved:
        one, other = tmp_path / "async" / folder, tmp_path / "sync" / folder
        assert names(one) == names(other) and len(names(one)) == world + 2
        assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names(one))
    rank = "rank-00000.safetensors"
    assert len({(tmp_path / "sync" / folder / rank).read_bytes() for folder in saved}) == len(saved)


def test_what_training_changes_before_it_is_copied_is_not_published(
    job: tuple[Engine, Ema],
    here: Mesh,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    changed, take = threading.Event(), Snapshot.take

    def slow(snapshot: Snapshot) -> None:
        changed.wait(10)
        take(snapshot)

    monkeypatch.setattr(Snapshot, "take", slow)
    saver = Saver(config(tmp_path), *job, here, RESOLVED)
    saver.save(1, {})
    steps(*job, 0, 1)
    changed.set()
    report = ended(saver, here)
    assert not report.published and "weights changed while they were copied" in caplog.text
    saver.settle()
    saver.close()
    assert names(tmp_path) == []


def test_a_second_save_waits_for_the_first(job: tuple[Engine, Ema], here: Mesh, tmp_path: Path) -> None:
    beats = []
    saver = Saver(config(tmp_path), *job, here, RESOLVED, beat=lambda: beats.append(1))
    saver.save(1, {})
    nudge(saver, *job, 1)
    saver.save(2, {})
    assert names(tmp_path)[-1] == "step-00000001" and beats
    assert ended(saver, here).step == 2
    report = saver.save(3, {}, wait=True)
    assert (
        report
        and report.published
        and report.nbytes == (tmp_path / "step-00000003" / "rank-00000.safetensors").stat().st_size
    )
    saver.save(4, {})
    waited = saver.save(4, {}, wait=True)  # the one in flight is the one asked for
    assert waited and waited.step == 4 and saver.settle() is None
    saver.close()
    assert names(tmp_path) == [f"step-0000000{step}" for step in (2, 3, 4)]


def test_one_that_falls_due_while_another_is_written_is_taken_after_it(
    job: tuple[Engine, Ema], here: Mesh, tmp_path: Path
) -> None:
    saver = Saver(config(tmp_path, every=3), *job, here, RESOLVED)
    assert [step for step in range(1, 4) if saver.due(step)] == [3]
    saver.save(3, {})
    assert [saver.due(step) for step in (4, 5, 6, 7)] == [False] * 4
    assert ended(saver, here).published
    assert saver.due(8)
    saver.save(8, {}, wait=True)
    assert [step for step in range(9, 13) if saver.due(step)] == [9, 10, 11, 12]  # until it is saved
    saver.save(12, {}, wait=True)
    assert [step for step in range(13, 16) if saver.due(step)] == [15]
    saver.close()


def test_what_was_said_with_a_checkpoint_comes_back_as_it_was(
    job: tuple[Engine, Ema], here: Mesh, tmp_path: Path
) -> None:
    saver = Saver(config(tmp_path), *job, here, RESOLVED)
    said: dict[str, Any] = {"guard": {"skipped": [3, 5]}, "journal": "ab12"}
    saver.save(7, said)
    said["guard"]["skipped"].append(9)
    assert ended(saver, here).published
    newest = latest(tmp_path, here)
    assert newest
    loaded = load(*job, newest, here)
    assert (loaded.step, loaded.extra) == (7, {"guard": {"skipped": [3, 5]}, "journal": "ab12"})
    with pytest.raises(TypeError, match="not JSON serializable"):
        saver.save(8, {"guard": object()})
    saver.close()


def test_closing_gives_up_what_is_in_flight_and_leaves_nothing_of_it(
    job: tuple[Engine, Ema], here: Mesh, tmp_path: Path
) -> None:
    saver = Saver(config(tmp_path), *job, here, RESOLVED)
    saver.save(1, {}, wait=True)
    saver.save(2, {})
    saver.close()
    assert names(tmp_path) == ["step-00000001"] and latest(tmp_path) == tmp_path / "step-00000001"


def test_what_a_killed_job_left_is_cleared_by_the_next_start(
    job: tuple[Engine, Ema], here: Mesh, tmp_path: Path
) -> None:
    left = shelf.aside(tmp_path, 4, "1-1")
    left.mkdir()
    (left / "rank-00000.part").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    saver = Saver(config(tmp_path), *job, here, RESOLVED)
    assert names(tmp_path) == ["notes.txt"] and saver.said() == Said.NOTHING and look(saver, here) is None
    saver.close()


def published(root: Path, steps: list[int], hours: float = 1.0) -> None:
    """Stand-ins of checkpoints, one every so many hours, the last one now."""
    now = time.time()
    for step in steps:
        folder = shelf.folder(root, step)
        folder.mkdir()
        (folder / "index.json").write_text("{}")
        born = now - 3600 * hours * (len(steps) - 1 - steps.index(step))
        os.utime(folder, (born, born))


@pytest.mark.parametrize(
    ("keep", "stay"),
    [
        (Retention(3, 0, 0.0), [700, 800, 905]),
        (Retention(1, 0, 0.0), [905]),
        (Retention(2, 250, 0.0), [300, 500, 800, 905]),  # the first at or after 250, 500 and 750
        (Retention(5, 0, 2.5), [700, 800, 905]),
        (Retention(5, 500, 0.5), [500, 905]),  # the newest is never too old
        (Retention(99, 0, 0.0), [100, 200, 300, 400, 500, 600, 700, 800, 905]),
    ],
)
def test_those_stay_that_are_new_young_or_kept_for_ever(tmp_path: Path, keep: Retention, stay: list[int]) -> None:
    published(tmp_path, [*range(100, 900, 100), 905])
    for _ in range(2):
        shelf.prune(tmp_path, keep, 905)
        assert sorted(shelf.steps(tmp_path)) == stay
    assert names(tmp_path) == [f"step-{step:08d}" for step in stay]


def test_no_more_retired_ones_stay_than_others(tmp_path: Path) -> None:
    published(tmp_path, [1, 2, 3, 4, 5])
    shelf.prune(tmp_path, Retention(2, 0, 0.0), 2)
    assert names(tmp_path) == ["retired-step-00000004", "retired-step-00000005", "step-00000001", "step-00000002"]
