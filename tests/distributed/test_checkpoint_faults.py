"""Damaged checkpoints, killed savers and failing disks: the newest whole one is what loads, and training goes on.

The tests here are short forms; tests/soak runs the same functions with more rounds.
"""

import contextlib
import logging
import os
import random
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from consumer import shelf
from consumer.checkpoint import CheckpointError, latest, load, newest, save
from consumer.ema import Ema
from consumer.saver import Saver, SaveReport
from parallel.engine import Engine
from parallel.mesh import Mesh
from tests.disk import MS_RDONLY, MS_REMOUNT, mounted
from tests.distributed import tiny
from tests.distributed.ranks import Ranks, RanksError
from tests.distributed.saving import (
    RESOLVED,
    config,
    ended,
    everything,
    flipped,
    from_another_step,
    look,
    missing,
    names,
    nudge,
    start,
    steps,
    truncated,
)
from tests.distributed.saving import here as here
from tests.distributed.saving import weights as weights


def two_on_rank(folder: str) -> None:
    """Save after one step and after three."""
    here = tiny.mesh(2, False)
    engine, ema = start(Path(folder).parent, here)
    for first, count in ((0, 1), (1, 2)):
        steps(engine, ema, first, count)
        save(config(Path(folder)), engine, ema, first + count, RESOLVED, {}, here)
    here.close()


@pytest.fixture(scope="module")
def two(ranks: Ranks, weights: Path) -> Path:
    """A folder with checkpoints of two steps from TP 2 x DP 2."""
    ranks.run(4, two_on_rank, folder=weights / "two")
    return weights / "two"


# Damage


def damage(root: Path, job: tuple[Engine, Ema], here: Mesh, rng: random.Random, *, flips: int, cuts: int) -> list[str]:
    """Damage the newer of two checkpoints in every way, one at a time: what was loaded instead, if not the older.

    `flips` random bits and `cuts` truncations in all, spread over the files; every file once missing and once that of
    the other step.
    """
    older, newer = sorted(root.glob("step-*"))
    good, before = everything(older), everything(newer)
    files = names(newer)
    trials: list[tuple[Callable[[Path, random.Random], None], str]] = []
    trials += [(flipped, files[n % len(files)]) for n in range(flips)]
    trials += [(truncated, files[n % len(files)]) for n in range(cuts)]
    trials += [(how, name) for how in (missing, from_another_step) for name in files]
    wrong = []
    for how, name in trials:
        whole = (newer / name).read_bytes()
        how(newer / name, rng)
        load(*job, older, here)
        try:
            load(*job, newer, here)
            wrong.append(f"{how.__name__} {name}: loaded without a word")
        except CheckpointError as error:
            # Either half of the pair can be the wrong one.
            if name not in str(error) and not {name, "index.json"} <= {"index.json", "index.sha256"}:
                wrong.append(f"{how.__name__} {name}: refused as {error}")
        if not unchanged(job, good):
            wrong.append(f"{how.__name__} {name}: refused after something had been loaded")
        found = newest(root, here)
        if found is None or found.path != older or load(*job, found, here).step != found.step:
            wrong.append(f"{how.__name__} {name}: {found and found.path} was taken instead")
        (newer / name).write_bytes(whole)
    assert latest(root, here) == newer and everything(newer).keys() == before.keys()
    return wrong


def unchanged(job: tuple[Engine, Ema], good: dict[str, Any]) -> bool:
    """Whether the engine and average hold `good`, on one rank."""
    engine, ema = job
    return all(
        bool((tensor == good[f"{kind}/{shard.name}"].flatten()[shard.start : shard.stop]).all())
        for shard in engine.shards()
        for kind, tensor in (shard.tensors | {"ema": ema.of(shard)}).items()
        if "exp_avg" in shard.tensors  # a never-trained weight is held in bf16
    )


def test_a_damaged_newest_one_is_refused_by_name_and_the_one_before_it_loads(
    weights: Path, two: Path, here: Mesh, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = shutil.copytree(two, tmp_path / "two")
    assert names(root / "step-00000003") == [
        "index.json",
        "index.sha256",
        *(f"rank-0000{rank}.safetensors" for rank in range(4)),
    ]
    with caplog.at_level(logging.WARNING):
        assert damage(root, start(weights, here), here, random.Random(7), flips=18, cuts=6) == []
    passed = [record for record in caplog.records if "damaged checkpoint passed over" in record.message]
    assert len(passed) == 18 + 6 + 2 * 6 and all(str(root / "step-00000003") in record.message for record in passed)


# Kills


def killed_on_rank(folder: str, moment: int) -> int:
    """Save twice; be killed before the given line of Python of the second save. The lines there are."""
    here = tiny.mesh(1, False)
    engine, ema = start(Path(folder).parent, here)
    save(config(Path(folder)), engine, ema, 1, RESOLVED, {}, here)
    lines = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal lines
        # What touches files.
        if event == "line" and frame.f_code.co_filename.endswith(("snapshot.py", "shelf.py", "shutil.py")):
            if lines == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            lines += 1
        return trace

    threading.settrace(trace)  # of the thread that writes
    save(config(Path(folder), keep=1), engine, ema, 2, RESOLVED, {}, here)
    threading.settrace(None)  # type: ignore[arg-type]
    here.close()
    return lines


def test_a_kill_at_any_line_of_a_save_leaves_a_whole_newest_one(ranks: Ranks, weights: Path) -> None:
    (lines,) = ranks.run(1, killed_on_rank, folder=weights / "not-killed", moment=-1)
    assert latest(weights / "not-killed") == weights / "not-killed" / "step-00000002"
    found = set()
    for moment in range(lines // 16, lines, lines // 8):
        root = weights / f"killed-{moment}"
        with pytest.raises(RanksError) as stopped:
            ranks.run(1, killed_on_rank, folder=root, moment=moment)
        assert stopped.value.codes == [-signal.SIGKILL]
        found.add(max(whole(root)).name)
    assert found == {"step-00000001", "step-00000002"}


def whole(root: Path) -> list[Path]:
    """The checkpoints that a killed job left, each of them whole."""
    left = list(root.glob("step-*"))
    assert left and all(everything(path) for path in left) and latest(root) == max(left)
    return left


def save_until_killed_on_rank(folder: str, seconds: float, how: str) -> None:
    """Save step after step while the weights move, and be killed some seconds after the second."""
    here = tiny.mesh(2, False)
    engine, ema = start(Path(folder).parent, here)
    saver = Saver(config(Path(folder), keep=2), engine, ema, here, RESOLVED)
    for step in range(1, 100_000):
        if step <= 2 or how == "waited for":
            saver.save(step, {}, wait=True)
        elif how == "two in flight":
            saver.save(step, {})
            saver.taken()
        elif saver.due(step):
            saver.save(step, {})
        if step == 2:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        nudge(saver, engine, ema, step)


def kills(ranks: Ranks, weights: Path, job: tuple[Engine, Ema], here: Mesh, *, count: int, how: str) -> list[int]:
    """Kill all ranks at random moments while they save: how many temporary folders each kill left behind.

    The newest of what each left must load, and the next start must clear the rest.
    """
    rng, leftovers = random.Random(how), []
    for number in range(count):
        root = weights / f"{how}-{number}"
        with pytest.raises(RanksError) as stopped:
            ranks.run(2, save_until_killed_on_rank, folder=root, seconds=rng.random() / 2, how=how)
        assert -signal.SIGKILL in stopped.value.codes
        left = whole(root)
        leftovers.append(len(names(root)) - len(left))
        found = newest(root, here)
        assert found and load(*job, found, here).step == found.step == int(max(left).name[5:]) >= 2
        Saver(config(root), *job, here, RESOLVED).close()
        assert names(root) == sorted(path.name for path in left)
        shutil.rmtree(root)
    return leftovers


@pytest.mark.parametrize("how", ["waited for", "beside training", "two in flight"])
def test_a_kill_of_all_ranks_at_any_time_leaves_a_whole_newest_one(
    ranks: Ranks, weights: Path, here: Mesh, how: str
) -> None:
    kills(ranks, weights, start(weights, here), here, count=2, how=how)


# Failing disks


@contextlib.contextmanager
def told() -> Iterator[list[str]]:
    """The warnings of this rank."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("consumer").addHandler(handler)
    yield said
    logging.getLogger("consumer").removeHandler(handler)


def until_due(saver: Saver, engine: Engine, ema: Ema, step: int) -> int:
    """Train until the next try; the step at which it is."""
    end = time.monotonic() + 20
    while not saver.due(step):
        assert time.monotonic() < end, "no second try"
        nudge(saver, engine, ema, step)
        step += 1
    return step


def full_on_rank(folder: str) -> dict[str, Any]:
    """Save while one rank's files may not grow, then with room again; then until saving is given up."""
    here, root = tiny.mesh(2, False), Path(folder)
    engine, ema = start(root.parent, here)
    saver = Saver(config(root, keep=2, retry_s=0.2, give_up_s=30), engine, ema, here, RESOLVED)
    for step in (1, 2, 3):
        saver.save(step, {}, wait=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with told() as said:
        if here.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        saver.save(4, {})
        first, began = ended(saver, here), time.monotonic()
        retried = until_due(saver, engine, ema, 5)
        waited, trained = time.monotonic() - began, engine.updates
        left = names(root)
        here.barrier()  # the next save makes a folder here
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        saver.save(retried, {})
        second = ended(saver, here)
        here.barrier()
        saved = names(root)
    if here.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    hopeless = Saver(config(root, retry_s=0.1, give_up_s=0.5), engine, ema, here, RESOLVED)
    tries, step, refused = 0, 100, ""
    try:
        while step < 100_000:
            if hopeless.due(step):
                hopeless.save(step, {})
                tries += 1
            nudge(hopeless, engine, ema, step)
            step += 1
    except CheckpointError as error:
        refused = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    result = {"why": first.why, "waited": waited, "trained": trained, "left": left, "second": second.published}
    result |= {"saved": saved, "retried": retried, "said": said, "tries": tries, "refused": refused}
    result |= {"end": names(root), "ended at": step}
    saver.close()
    hopeless.close()
    here.close()
    return result


def test_a_disk_full_on_one_rank_never_stops_training_until_it_was_full_for_too_long(
    ranks: Ranks, weights: Path
) -> None:
    root = weights / "full"
    one, other = ranks.run(2, full_on_rank, folder=root)
    alike = ("why", "trained", "second", "retried", "tries", "refused", "ended at")
    assert all(one[key] == other[key] for key in alike)
    assert one["why"].endswith("rank 1: File too large") and str(root) in one["why"]
    assert one["waited"] >= 0.1 and one["trained"] >= 2 and one["second"]
    assert one["left"] == ["step-00000002", "step-00000003"]
    assert one["saved"] == ["step-00000003", f"step-{one['retried']:08d}"]
    failed, again = one["said"]
    assert f"checkpoint of step 4 not written: {one['why']}; next try in 0.2 s, given up in 30 s" == failed
    assert again == f"checkpoint of step {one['retried']} written: saving works again"
    assert 2 <= one["tries"] <= 6 and "give_up_s" in one["refused"] and "rank 1: File too large" in one["refused"]
    assert names(root) == one["end"] == one["saved"] and latest(root) == root / one["saved"][-1]


def small_disk_on_rank(folder: str) -> dict[str, Any] | str:
    """Save to a disk that fills up, that is cleared, that turns read-only and back."""
    root, ballast = Path(folder) / "disk" / "checkpoints", Path(folder) / "disk" / "ballast"
    root.parent.mkdir(parents=True)
    try:
        mounted(64_000_000, root.parent)
    except OSError as error:
        return str(error)
    here = tiny.mesh(1, False)
    engine, ema = start(Path(folder).parent, here)
    saver = Saver(config(root, keep=1, retry_s=0.1), engine, ema, here, RESOLVED)
    whys, kept, step = [], [], 2
    saver.save(1, {}, wait=True)
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
    os.truncate(ballast, ballast.stat().st_size - 2_000_000)

    def unready() -> None:
        nonlocal step
        saver.save(step, {})
        whys.append(ended(saver, here).why)
        step = until_due(saver, engine, ema, step + 1)
        kept.append(names(root))

    unready()
    ballast.unlink()
    saver.save(step, {}, wait=True)
    mounted(64_000_000, root.parent, MS_REMOUNT, MS_RDONLY)
    step += 1
    unready()
    mounted(64_000_000, root.parent, MS_REMOUNT)
    saver.save(step, {}, wait=True)
    saver.close()
    found = newest(root, here)
    assert found and load(engine, ema, found, here).step == step and names(root) == [found.path.name]
    here.close()
    return {"whys": whys, "kept": kept}


def test_a_disk_that_fills_up_or_turns_read_only_is_named_and_waited_for(ranks: Ranks, weights: Path) -> None:
    (result,) = ranks.run(1, small_disk_on_rank, folder=weights / "small")
    if isinstance(result, str):
        pytest.skip(f"no file system of one's own here: {result}")
    full, locked = result["whys"]
    assert full.endswith("rank 0: No space left on device") and locked.endswith("rank 0: Read-only file system")
    assert result["kept"][0] == ["step-00000001"] and len(result["kept"][1]) == 1


def test_a_folder_that_cannot_be_is_named_at_once_where_nothing_is_to_be_waited_for(
    weights: Path, here: Mesh, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    root = tmp_path / "file" / "checkpoints"
    with pytest.raises(CheckpointError, match=f"{root}.*rank 0: Not a directory"):
        save(config(root), *start(weights, here), 1, RESOLVED, {}, here)


def test_a_write_that_never_ends_is_given_up(
    weights: Path, here: Mesh, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = start(weights, here)
    saver = Saver(config(tmp_path, write_s=0.5, retry_s=0.1), *job, here, RESOLVED)
    stuck = shelf.aside(tmp_path, 1, f"{saver._start}-1") / "rank-00000.part"
    stuck.parent.mkdir()
    os.mkfifo(stuck)  # to open it waits for a reader
    saver.save(1, {})
    report: SaveReport = ended(saver, here)
    assert not report.published and report.why.endswith("rank 0: Timer expired")
    with pytest.raises(CheckpointError, match="Timer expired"):
        while True:
            look(saver, here)
    os.close(os.open(stuck, os.O_RDONLY | os.O_NONBLOCK))
    saver.close()
    assert latest(tmp_path) is None
