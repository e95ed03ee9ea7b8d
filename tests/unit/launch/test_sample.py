"""A checkpoint's averaged weights are sampled to a grid, exported, and diffusers draws the same pictures from them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import QwenImagePipeline
from PIL import Image
from safetensors.torch import save_file

from consumer.pieces import INDEX, INDEX_HASH, File, Index, Piece, index_hash, mapped
from launch import export, sample
from launch.config import ConfigError
from launch.sample_config import SampleConfig
from producer.encode import EncoderError
from tests.unit.model.parity import reference, sizes

CONFIG = "launch/configs/smoke.toml"
PROMPTS = ("a red cup", "红色的海报")


def write_checkpoint(folder: Path, *kinds: str, width: int = 64) -> None:
    """A checkpoint of a tiny model, whose average differs from its weights."""
    config = sizes(in_channels=64, out_channels=16, joint_attention_dim=width, num_layers=2)
    state = {name: tensor.detach() for name, tensor in reference(config, 2).state_dict().items()}
    folder.mkdir(parents=True)
    file = folder / "rank-00000.safetensors"
    scale = {"param": 3.0, "ema": 1.0}
    pieces = [Piece(file.name, name, kinds, None, tuple(t.shape), 0, t.numel()) for name, t in state.items()]
    save_file({piece.key(kind): state[piece.name].flatten() * scale[kind] for piece in pieces for kind in kinds}, file)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    said = {"model": config.model_dump(mode="json")}
    raw = Index(40, 40, said, {}, {file.name: File.of(mapped(file))}, shapes, tuple(pieces)).to_json()
    (folder / INDEX).write_bytes(raw)
    (folder / INDEX_HASH).write_bytes(index_hash(raw))


def arguments(monkeypatch: pytest.MonkeyPatch, run: Path, encoders: Path, *more: str) -> None:
    prompts = "[" + ", ".join(f'"{prompt}"' for prompt in PROMPTS) + "]"
    overrides = [f"run.dir={run}", f"encoder.root={encoders}", "encoder.dtype=float32", f"sample.prompts={prompts}"]
    fixed = [
        "sample.steps=3",
        "sample.cfg_scale=4.0",
        'sample.sizes=["48x64", "80x32"]',
        "sample.seed=5",
        "sample.batch=3",
    ]
    monkeypatch.setattr(sys, "argv", ["launch", CONFIG, *overrides, *fixed, *more])


def test_the_grid_shows_what_diffusers_draws_from_the_export(
    encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "checkpoints" / "step-00000040", "param", "ema")
    arguments(monkeypatch, tmp_path, encoders)
    assert sample.main() == 0
    assert "step 40" in capsys.readouterr().out
    arguments(monkeypatch, tmp_path, encoders, "--out", str(tmp_path / "export"))
    assert export.main() == 0
    pipeline = QwenImagePipeline.from_pretrained(tmp_path / "export", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    with Image.open(tmp_path / "grid.png") as grid:
        sheet = np.asarray(grid).astype(int)
    # Two columns of cells 64 wide and 80 high, 12 between them, the captions' lines below.
    below = (sheet.shape[0] - 12) // 2
    for k, (prompt, (height, width)) in enumerate((p, s) for p in PROMPTS for s in ((48, 64), (80, 32))):
        drawn = pipeline(
            prompt,
            negative_prompt=" ",
            height=height,
            width=width,
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(5 + k),
        ).images[0]
        top, left = 12 + below * (k // 2), 12 + (64 + 12) * (k % 2)
        shown = sheet[top : top + height, left : left + width]
        assert np.abs(shown - np.asarray(drawn).astype(int)).max() <= 1


def test_weights_without_an_average_are_sampled_as_they_are(
    encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "alone", "param")
    arguments(
        monkeypatch, tmp_path, encoders, "--checkpoint", str(tmp_path / "alone"), "--out", str(tmp_path / "a.png")
    )
    assert sample.main() == 0
    assert (tmp_path / "a.png").is_file()


def test_no_checkpoint_is_one_clear_error(encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments(monkeypatch, tmp_path, encoders)
    with pytest.raises(ConfigError, match=f"{tmp_path / 'checkpoints'} holds no whole checkpoint"):
        sample.main()


def test_missing_encoders_are_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments(monkeypatch, tmp_path, tmp_path / "nowhere")
    with pytest.raises(EncoderError, match="make_encoders"):
        sample.main()


def test_encoders_of_another_width_are_refused_with_both(
    encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "checkpoints" / "step-00000040", "param", width=24)
    arguments(monkeypatch, tmp_path, encoders)
    with pytest.raises(ConfigError, match=r"is 64 wide, the trained model reads 24"):
        sample.main()


@pytest.mark.parametrize("size", ["256", "256x", "250x256", "0x16", "axb"])
def test_a_size_that_no_picture_can_have_is_refused(size: str) -> None:
    with pytest.raises(ValueError, match=r"sample\.sizes"):
        SampleConfig(sizes=(size,))
