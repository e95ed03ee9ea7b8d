"""An export opens in diffusers alone, says what the trained weights say, and appears whole or not at all."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from consumer.export import ExportError, export
from model.config import MMDiTConfig
from model.layout import Layout
from model.mmdit import MMDiT
from tests.unit.model.parity import reference, sizes

# Runs where only the libraries can be imported: -I -S leaves out the working directory and every .pth file, an
# editable install's among them.
OPEN = """
import sys
sys.path.append(sys.argv[1])
import importlib.util
import warnings
for ours in ("consumer", "launch", "model", "parallel", "producer"):
    assert importlib.util.find_spec(ours) is None, ours
warnings.simplefilter("error")
import numpy as np
import torch
from diffusers import QwenImagePipeline
torch.set_num_threads(1)
pipeline = QwenImagePipeline.from_pretrained(sys.argv[2], dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
wave = lambda *shape: torch.sin(torch.arange(np.prod(shape)).float()).reshape(shape)
with torch.no_grad():
    out = pipeline.transformer(
        hidden_states=wave(1, 12, 64), encoder_hidden_states=wave(1, 7, 64), timestep=torch.tensor([0.3]),
        img_shapes=[[(1, 3, 4)]], return_dict=False,
    )[0]
np.save(sys.argv[3], out[0].numpy())
generator = torch.Generator().manual_seed(0)
picture = pipeline(
    "a cat, 一只猫", negative_prompt=" ", height=48, width=64, num_inference_steps=2, generator=generator
).images[0]
print(type(pipeline).__name__, picture.size)
"""


def small() -> MMDiTConfig:
    """A model that fits the tiny encoders."""
    return sizes(in_channels=64, out_channels=16, joint_attention_dim=64, num_layers=2)


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    """Weights as if from training."""
    return {name: tensor.detach() for name, tensor in reference(small(), 4).state_dict().items()}


def wave(*shape: int) -> Tensor:
    return torch.sin(torch.arange(int(np.prod(shape))).float()).reshape(shape)


def test_diffusers_alone_opens_and_runs_it_and_its_transformer_agrees(
    trained: dict[str, Tensor], encoders: Path, tmp_path: Path
) -> None:
    export(tmp_path / "out", trained.items(), small(), encoders, torch.float32)
    libraries = Path(diffusers.__file__).parents[1]
    command = [sys.executable, "-I", "-S", "-c", OPEN, libraries, tmp_path / "out", tmp_path / "flow.npy"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "QwenImagePipeline (64, 48)" in ran.stdout
    model = MMDiT(small())
    model.load_state_dict(trained)
    with torch.no_grad():
        layout = Layout.build([[(0, 3, 4)]], [7], small().axes_dims_rope)
        flow = model(wave(12, 64), wave(7, 64), torch.tensor([0.3]), layout)
    theirs = torch.from_numpy(np.load(tmp_path / "flow.npy"))
    assert (flow - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_shards_and_their_index_hold_every_weight_as_given(
    trained: dict[str, Tensor], encoders: Path, tmp_path: Path
) -> None:
    export(tmp_path / "out", trained.items(), small(), encoders, torch.bfloat16, shard_bytes=30_000)
    folder = tmp_path / "out" / "transformer"
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"diffusion_pytorch_model-00001-of-{len(files):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(2 * tensor.numel() for tensor in trained.values())
    loaded = QwenImageTransformer2DModel.from_pretrained(folder).state_dict()
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[name], tensor.bfloat16()) for name, tensor in trained.items())


def test_weights_are_taken_one_shard_at_a_time(trained: dict[str, Tensor], encoders: Path, tmp_path: Path) -> None:
    given: list[str] = []
    written: list[int] = []

    def state() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in trained.items():
            written.append(len(list(tmp_path.rglob("*.part"))))
            given.append(name)
            yield name, tensor

    export(tmp_path / "out", state(), small(), encoders, torch.float32, shard_bytes=60_000)
    assert given == list(trained)
    assert written == sorted(written)
    assert written[len(written) // 2] > 0


def test_an_earlier_export_is_replaced_and_nothing_else_is_left(
    trained: dict[str, Tensor], encoders: Path, tmp_path: Path
) -> None:
    export(tmp_path / "out", trained.items(), small(), encoders, torch.float32)
    doubled = {name: 2 * tensor for name, tensor in trained.items()}
    export(tmp_path / "out", doubled.items(), small(), encoders, torch.float32)
    loaded = QwenImageTransformer2DModel.from_pretrained(tmp_path / "out" / "transformer").state_dict()
    assert torch.equal(loaded["img_in.weight"], doubled["img_in.weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_missing_a_misshapen_and_an_unknown_weight_are_named(
    trained: dict[str, Tensor], encoders: Path, tmp_path: Path
) -> None:
    wrong = {
        r"1 weights are missing, such as proj_out\.bias \(64,\)": {
            name: tensor for name, tensor in trained.items() if name != "proj_out.bias"
        },
        r"img_in\.bias: has shape \(3,\), the model's is \(64,\)": trained | {"img_in.bias": torch.zeros(3)},
        r"weight lm_head: not one of this model's": trained | {"lm_head": torch.zeros(3)},
    }
    for message, state in wrong.items():
        with pytest.raises(ExportError, match=message):
            export(tmp_path / "out", state.items(), small(), encoders, torch.float32)
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_the_earlier_one(trained: dict[str, Tensor], encoders: Path, tmp_path: Path) -> None:
    export(tmp_path / "out", trained.items(), small(), encoders, torch.float32)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ExportError):
        export(tmp_path / "out", [], small(), encoders, torch.float32)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_folder_of_something_else_is_refused(trained: dict[str, Tensor], encoders: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=str(tmp_path)):
        export(tmp_path, trained.items(), small(), encoders, torch.float32)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_encoders_without_a_part_are_refused_by_name(
    trained: dict[str, Tensor], encoders: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="scheduler: missing"):
        export(tmp_path / "out", trained.items(), small(), tmp_path, torch.float32)
