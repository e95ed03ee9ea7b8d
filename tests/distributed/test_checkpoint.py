"""A checkpoint is the same training on any layout, and only a whole one of the same model is ever loaded."""

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from consumer.checkpoint import CheckpointError, CheckpointReader, latest, load, save
from model.config import MMDiTConfig
from model.mmdit import MMDiT
from parallel.engine import Engine
from tests.distributed import tiny
from tests.distributed.ranks import Ranks
from tests.distributed.saving import (
    RESOLVED,
    config,
    draw_weights,
    flipped,
    same_bits,
    start,
    steps,
)

SAVED, MORE = 3, 2  # steps before and after the checkpoint


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
    draw_weights(folder)
    return folder, ranks.run(4, save_on_rank, folder=folder, tp=2, sp=False)[0]


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
        assert "rank-00003.safetensors: its checksum" in refused or "another rank" in refused


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


def test_a_newer_format_is_refused_by_name(saved: tuple[Path, Any], tmp_path: Path) -> None:
    from consumer.pieces import index_hash

    newest = shutil.copytree(saved[0] / "saved" / "step-00000003", tmp_path / "step-00000003")
    raw = json.dumps(json.loads((newest / "index.json").read_bytes()) | {"version": 4}).encode()
    (newest / "index.json").write_bytes(raw)
    (newest / "index.sha256").write_bytes(index_hash(raw))
    with pytest.raises(CheckpointError, match=r"index\.json: format 4, this program reads 2 and 3"):
        CheckpointReader(newest)


def test_the_format_before_is_still_read_and_verified(saved: tuple[Path, Any], tmp_path: Path) -> None:
    from consumer.pieces import File, index_hash, mapped

    newest = saved[0] / "saved" / "step-00000003"
    before = shutil.copytree(newest, tmp_path / "step-00000003")
    said = json.loads((before / "index.json").read_bytes()) | {"version": 2}
    for name, file in said["files"].items():
        del file["checksum"]
        file["blocks"] = File.of(mapped(before / name), "sha256").checksum.removeprefix("sha256:")
    raw = json.dumps(said).encode()
    (before / "index.json").write_bytes(raw)
    (before / "index.sha256").write_bytes(index_hash(raw))
    ours, now = CheckpointReader(before), CheckpointReader(newest)
    assert all(torch.equal(ours.whole(name, "param"), now.whole(name, "param")) for name in now.names)
    flipped(before / "rank-00001.safetensors", random.Random(1))
    with pytest.raises(CheckpointError, match=r"rank-00001\.safetensors: its checksum"):
        CheckpointReader(before).verify(["rank-00001.safetensors"])
