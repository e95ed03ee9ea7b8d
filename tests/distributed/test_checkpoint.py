"""A checkpoint is the same training on any layout, is refused when a bit of it is wrong, and appears whole or not."""

import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from consumer.checkpoint import CheckpointConfig, CheckpointError, CheckpointReader, latest, load, save
from consumer.ema import Ema, EmaConfig
from model.mmdit import MMDiT, MMDiTConfig
from parallel.engine import Engine
from parallel.mesh import Mesh
from tests.distributed import tiny
from tests.distributed.ranks import Ranks, RanksError

LR = 3e-3
SAVED, MORE = 3, 2  # steps before and after the checkpoint
RESOLVED = {"model": {"num_layers": 3}, "note": "as resolved"}


def start(folder: Path, here: Mesh, precision: str = "bf16") -> tuple[Engine, Ema]:
    """The engine and average of these tests."""
    # Without overlap no forward gathers the parameters: what is loaded must already be everywhere.
    engine = tiny.build(folder / "weights.safetensors", here, tiny.optim(precision, overlap=here.tp > 1))
    return engine, Ema(EmaConfig(decay=0.9), engine)


def steps(engine: Engine, ema: Ema, first: int, count: int) -> list[tuple[float, float]]:
    """Train some steps: (loss, norm) of each."""
    series = []
    for step in range(first, first + count):
        loss, _ = tiny.backward(engine, step)
        norm, _ = engine.step(LR)
        ema.update(engine, step)
        series.append((loss, norm))
    return series


def config(root: Path, keep: int = 3) -> CheckpointConfig:
    return CheckpointConfig(path=root, every=1, keep=keep)


def save_on_rank(folder: str, tp: int, sp: bool) -> list[tuple[float, float]]:
    """Train, save, train on, save; the losses after the first checkpoint."""
    here = tiny.mesh(tp, sp)
    engine, ema = start(Path(folder), here)
    root = config(Path(folder) / "saved")
    steps(engine, ema, 0, 1)
    engine.finish(1)
    save(root, engine, ema, 1, RESOLVED, {"seen": 1}, here)
    steps(engine, ema, 1, SAVED - 1)
    save(root, engine, ema, SAVED, RESOLVED, {"seen": [SAVED, here.rank]}, here)
    series = steps(engine, ema, SAVED, MORE)
    save(config(Path(folder) / "end"), engine, ema, SAVED + MORE, RESOLVED, {}, here)
    here.close()
    return series


def resume_on_rank(folder: str, tp: int, sp: bool, precision: str, into: str) -> list[tuple[float, float]]:
    """Load the newest into weights that differ, save it again as it is, train on and save the end."""
    here = tiny.mesh(tp, sp)
    engine, ema = start(Path(folder), here, precision)
    steps(engine, ema, 7, 1)  # not the weights, moments, average or step that will be loaded
    newest = latest(Path(folder) / "saved", here)
    assert newest and load(engine, ema, newest, here).step == SAVED and engine.updates == SAVED
    save(config(Path(folder) / into), engine, ema, SAVED, RESOLVED, {}, here)
    series = steps(engine, ema, SAVED, MORE)
    save(config(Path(folder) / into), engine, ema, SAVED + MORE, RESOLVED, {}, here)
    here.close()
    return series


@pytest.fixture(scope="module")
def saved(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[float, float]]]:
    """A folder with checkpoints of two steps from TP 2 x DP 2, and the losses after the second."""
    folder = tmp_path_factory.mktemp("checkpoint")
    generator = torch.Generator().manual_seed(0)
    weights = {n: 0.1 * torch.randn(p.shape, generator=generator) for n, p in MMDiT(tiny.CONFIG).named_parameters()}
    save_file(weights, folder / "weights.safetensors")
    return folder, ranks.run(4, save_on_rank, folder=folder, tp=2, sp=False)[0]


def everything(path: Path) -> dict[str, torch.Tensor]:
    """All whole tensors of a checkpoint."""
    reader = CheckpointReader(path)
    return {f"{kind}/{name}": reader.whole(name, kind) for name in reader.names for kind in reader.kinds(name)}


def same_bits(one: Path, other: Path) -> None:
    left, right = everything(one), everything(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor.view(torch.int32), right[name].view(torch.int32)), name


def test_a_checkpoint_says_what_it_is(saved: tuple[Path, Any]) -> None:
    reader = CheckpointReader(saved[0] / "saved" / "step-00000003")
    assert (reader.step, reader.updates, reader.config, reader.extra) == (3, 3, RESOLVED, {"seen": [3, 0]})
    whole = {name: tuple(p.shape) for name, p in MMDiT(tiny.CONFIG).named_parameters()}
    assert reader.shapes == whole and reader.names == sorted(whole)
    subprocess.run(["sha256sum", "--check", "--quiet", "index.sha256"], cwd=reader.path, check=True)
    trained = {name for name, p in MMDiT(tiny.CONFIG).named_parameters() if p.requires_grad}
    for name in reader.names:
        kinds = ("param", "exp_avg", "exp_avg_sq", "ema") if name in trained else ("param", "ema")
        assert reader.kinds(name) == kinds
        assert all(reader.whole(name, kind).shape == whole[name] for kind in kinds)


@pytest.mark.parametrize(
    ("world", "tp", "sp", "precision"),
    [(4, 2, False, "bf16"), (4, 1, False, "bf16"), (4, 4, False, "bf16"), (2, 2, True, "bf16"), (1, 1, False, "fp32")],
)
def test_every_tensor_is_bit_equal_on_any_layout_and_training_goes_on(
    ranks: Ranks, saved: tuple[Path, list[tuple[float, float]]], world: int, tp: int, sp: bool, precision: str
) -> None:
    folder, wanted = saved
    into = f"{world}-{tp}-{sp}"
    series = ranks.run(world, resume_on_rank, folder=folder, tp=tp, sp=sp, precision=precision, into=into)
    same_bits(folder / "saved" / "step-00000003", folder / into / "step-00000003")
    if (world, tp, sp) == (4, 2, False):
        assert all(one == wanted for one in series)
        same_bits(folder / "end" / "step-00000005", folder / into / "step-00000005")
    for one in series:  # fp32 does not round the timestep as bf16 does
        assert torch.tensor(one).allclose(torch.tensor(wanted), rtol=3e-2 if precision == "bf16" else 0.2)


def test_a_checkpoint_of_another_model_is_refused_before_anything_changes(
    saved: tuple[Path, Any], tmp_path: Path
) -> None:
    here = tiny.mesh(1, False)
    try:
        other = MMDiTConfig(**tiny.CONFIG.model_dump() | {"num_layers": 2})
        engine, _ = start(saved[0], here)
        model = MMDiT(other)
        for parameter in model.parameters():
            parameter.data.zero_()
        engine = Engine(model, tiny.optim("bf16"), here)
        with pytest.raises(
            CheckpointError, match=r"of another model: transformer_blocks\.2\.\S+ is \(.*\) there and absent here"
        ):
            load(engine, None, saved[0] / "saved" / "step-00000003", here)
        assert not any(parameter.any() for parameter in model.parameters()) and engine.updates == 0
    finally:
        here.close()


def flipped(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncated(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def missing(path: Path, rng: random.Random) -> None:
    path.unlink()


def from_another_step(path: Path, rng: random.Random) -> None:
    shutil.copyfile(path.parent.parent / "step-00000001" / path.name, path)


def test_a_damaged_newest_one_is_named_and_the_one_before_it_used(
    saved: tuple[Path, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = shutil.copytree(saved[0] / "saved", tmp_path / "saved")
    newest, before = root / "step-00000003", root / "step-00000001"
    assert latest(root) == newest
    rng = random.Random(7)
    files = sorted(path.name for path in newest.iterdir())
    assert files == ["index.json", "index.sha256", *(f"rank-0000{rank}.safetensors" for rank in range(4))]
    damages = [(flipped, name) for name in files * 10]
    damages += [(how, name) for how in (truncated, truncated, missing, from_another_step) for name in files]
    for how, name in damages:
        good = (newest / name).read_bytes()
        how(newest / name, rng)
        with pytest.raises(CheckpointError) as refused:
            CheckpointReader(newest).verify(files[2:])
        # Either half of the pair can be the wrong one.
        assert name in str(refused.value) or {name, "index.json"} <= {"index.json", "index.sha256"}, str(refused.value)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert latest(root) == before, (how, name)
        assert str(newest) in caplog.text
        (newest / name).write_bytes(good)
    assert latest(root) == newest


def test_exchanged_files_and_folders_are_refused(saved: tuple[Path, Any], tmp_path: Path) -> None:
    root = shutil.copytree(saved[0] / "saved", tmp_path / "saved")
    newest = root / "step-00000003"
    one, other = newest / "rank-00000.safetensors", newest / "rank-00001.safetensors"
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(held)
    reader = CheckpointReader(newest)
    refused = 0
    for name in reader.names:
        try:
            reader.whole(name, "param")
        except CheckpointError as error:
            refused += "rank-0000" in str(error)
    assert refused  # the names in the other two files are as they were
    assert latest(root) == root / "step-00000001"
    shutil.rmtree(newest)
    shutil.copytree(root / "step-00000001", newest)  # whole and sound, but of another step
    assert latest(root) == root / "step-00000001"
    shutil.rmtree(root / "step-00000001")
    assert latest(root) is None and latest(root / "nowhere") is None


def damaged_on_rank(folder: str) -> list[Any]:
    """What a job does about a newest checkpoint whose second rank's file is damaged."""
    here = tiny.mesh(2, False)
    engine, ema = start(Path(folder).parent, here)
    newest = latest(Path(folder), here)
    refused = ""
    try:
        load(engine, ema, Path(folder) / "step-00000003", here)
    except CheckpointError as error:
        refused = str(error)
    untouched = engine.updates
    here.close()
    return [newest and newest.name, refused, untouched]


def test_all_ranks_agree_that_a_checkpoint_is_damaged(ranks: Ranks, saved: tuple[Path, Any]) -> None:
    root = shutil.copytree(saved[0] / "saved", saved[0] / "damaged")
    flipped(root / "step-00000003" / "rank-00003.safetensors", random.Random(1))
    for newest, refused, updates in ranks.run(4, damaged_on_rank, folder=root):
        assert newest == "step-00000001" and updates == 0
        assert "rank-00003.safetensors: its hash" in refused or "another rank" in refused


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


def test_a_kill_at_any_line_of_a_save_leaves_a_whole_newest_one(ranks: Ranks, saved: tuple[Path, Any]) -> None:
    (lines,) = ranks.run(1, killed_on_rank, folder=saved[0] / "not-killed", moment=-1)
    assert latest(saved[0] / "not-killed") == saved[0] / "not-killed" / "step-00000002"
    newest = set()
    for moment in range(lines // 48, lines, lines // 24):
        root = saved[0] / f"killed-{moment}"
        with pytest.raises(RanksError) as ended:
            ranks.run(1, killed_on_rank, folder=root, moment=moment)
        assert ended.value.codes == [-signal.SIGKILL]
        found = list(root.glob("step-*"))
        assert found and all(everything(path) for path in found) and latest(root) == max(found)
        newest.add(max(found).name)
    assert newest == {"step-00000001", "step-00000002"}


def save_until_killed_on_rank(folder: str, seconds: float) -> None:
    """Save step after step, and be killed some seconds after the second."""
    here = tiny.mesh(2, False)
    engine, ema = start(Path(folder).parent, here)
    for step in range(1, 10_000):
        save(config(Path(folder), keep=2), engine, ema, step, RESOLVED, {}, here)
        if step == 2:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


def test_a_kill_of_all_ranks_at_any_time_leaves_a_whole_newest_one(ranks: Ranks, saved: tuple[Path, Any]) -> None:
    rng = random.Random(3)
    for number in range(4):
        root = saved[0] / f"all-killed-{number}"
        with pytest.raises(RanksError) as ended:
            ranks.run(2, save_until_killed_on_rank, folder=root, seconds=rng.random() / 2)
        assert -signal.SIGKILL in ended.value.codes
        found = list(root.glob("step-*"))
        assert found and all(everything(path) for path in found) and latest(root) == max(found)


def go_back_on_rank(folder: str) -> list[Any]:
    """Resume behind a damaged checkpoint and save: the names left after each save."""
    here = tiny.mesh(1, False)
    engine, ema = start(Path(folder).parent, here)
    root = config(Path(folder), keep=1)
    names = []
    for step in (2, 6):
        save(root, engine, ema, step, RESOLVED, {}, here)
    flipped(Path(folder) / "step-00000006" / "rank-00000.safetensors", random.Random(1))
    for step in (4, 6):
        save(root, engine, ema, step, RESOLVED, {}, here)
        newest = latest(Path(folder), here)
        names.append([newest and newest.name, sorted(path.name for path in Path(folder).iterdir())])
    here.close()
    return names


def test_going_back_behind_a_damaged_checkpoint_never_costs_the_new_ones(ranks: Ranks, saved: tuple[Path, Any]) -> None:
    (names,) = ranks.run(1, go_back_on_rank, folder=saved[0] / "back")
    assert names == [
        ["step-00000004", ["retired-step-00000006", "step-00000004"]],
        ["step-00000006", ["retired-step-00000006", "step-00000006"]],
    ]


def full_on_rank(folder: str) -> list[str]:
    """Save while one rank's files may not grow, then with room again."""
    here = tiny.mesh(2, False)
    engine, ema = start(Path(folder).parent, here)
    root = config(Path(folder), keep=2)
    for step in (1, 2, 3):
        save(root, engine, ema, step, RESOLVED, {}, here)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if here.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    said = ""
    try:
        save(root, engine, ema, 4, RESOLVED, {}, here)
    except CheckpointError as error:
        said = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    here.barrier()
    left = sorted(path.name for path in Path(folder).iterdir())
    here.barrier()
    save(root, engine, ema, 4, RESOLVED, {}, here)
    here.close()
    return [said, *left]


def test_a_full_disk_on_one_rank_fails_the_save_on_all_and_leaves_the_others_whole(
    ranks: Ranks, saved: tuple[Path, Any]
) -> None:
    root = saved[0] / "full"
    results = ranks.run(2, full_on_rank, folder=root)
    assert all("rank 1: File too large" in said for said, *_ in results)
    assert all(left == ["step-00000002", "step-00000003"] for _, *left in results)
    assert sorted(path.name for path in root.iterdir()) == ["step-00000003", "step-00000004"]
    assert latest(root) == root / "step-00000004"


def test_a_newer_format_is_refused_by_name(saved: tuple[Path, Any], tmp_path: Path) -> None:
    from consumer.pieces import index_hash

    newest = shutil.copytree(saved[0] / "saved" / "step-00000003", tmp_path / "step-00000003")
    raw = json.dumps(json.loads((newest / "index.json").read_bytes()) | {"version": 3}).encode()
    (newest / "index.json").write_bytes(raw)
    (newest / "index.sha256").write_bytes(index_hash(raw))
    with pytest.raises(CheckpointError, match=r"index\.json: format 3, this program reads 2"):
        CheckpointReader(newest)
