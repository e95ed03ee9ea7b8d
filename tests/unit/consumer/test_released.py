"""What is read from a released folder, and every way in which one can be wrong."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from consumer.export import export
from consumer.released import ReleasedError, load_released
from model.config import MMDiTConfig
from model.mmdit import MMDiT
from parallel.mesh import Mesh
from parallel.provider import MegatronProvider
from tests.distributed import tiny
from tests.unit.model.parity import reference, run_ours, run_theirs, samples, sizes

ONE = "diffusion_pytorch_model.safetensors"
INDEX = f"{ONE}.index.json"


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    here = tiny.mesh(1, False)
    yield here
    here.close()


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in reference(sizes(), 4).state_dict().items()}


def loaded(folder: Path, mesh: Mesh, dtype: torch.dtype = torch.float32, config: MMDiTConfig | None = None) -> MMDiT:
    with torch.device("meta"):
        model = MMDiT(config or sizes(), MegatronProvider(mesh, dtype))
    load_released(folder, model, mesh, dtype)
    return model


def write(folder: Path, weights: dict[str, Tensor], **over: object) -> Path:
    """A released folder of one file, as diffusers would write it."""
    transformer = folder / "transformer"
    transformer.mkdir()
    save_file(weights, transformer / ONE)
    said = sizes().released() | {"_class_name": "x", "pooled_projection_dim": 768}
    (transformer / "config.json").write_text(json.dumps(said | over))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_diffusers_saved_loads_and_computes_the_same(mesh: Mesh, tmp_path: Path, dtype: torch.dtype) -> None:
    theirs = reference(sizes(), 4).to(dtype)
    theirs.save_pretrained(tmp_path / "transformer", max_shard_size="60KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 3
    for folder in (tmp_path, tmp_path / "transformer"):
        model = loaded(folder, mesh, dtype)
        assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in model.named_parameters())
    unit = samples(sizes(), 1, 3)
    with torch.no_grad():
        ours, wanted = run_ours(model, unit), run_theirs(theirs, unit)
    assert (ours - wanted).abs().max() <= (1e-5 if dtype == torch.float32 else 2e-2) * wanted.abs().max()


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_float_type_is_cast_as_torch_casts_it(
    mesh: Mesh, weights: dict[str, Tensor], tmp_path: Path, stored: torch.dtype, dtype: torch.dtype
) -> None:
    kept = {name: tensor.to(stored) for name, tensor in weights.items()}
    model = loaded(write(tmp_path, kept), mesh, dtype)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype and torch.equal(parameter, kept[name].to(dtype)), name


def test_files_without_an_index_are_all_read(mesh: Mesh, weights: dict[str, Tensor], tmp_path: Path) -> None:
    write(tmp_path, dict(list(weights.items())[:20]))
    save_file(dict(list(weights.items())[20:]), tmp_path / "transformer" / "diffusion_pytorch_model-2.safetensors")
    model = loaded(tmp_path, mesh)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_then_load_then_export_writes_the_same_bytes(
    mesh: Mesh, weights: dict[str, Tensor], encoders: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    config = sizes()
    export(tmp_path / "one", weights.items(), config, encoders, dtype, shard_bytes=100_000)
    model = loaded(tmp_path / "one", mesh, dtype, config)
    # In the order in which the first was given: shards are filled in that of the state.
    state = {name: dict(model.named_parameters())[name].detach() for name in weights}
    export(tmp_path / "two", state.items(), config, encoders, dtype, shard_bytes=100_000)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one" / "transformer").iterdir()]
    assert len(files) > 4
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_marks_on_parameters_outlast_the_meta_device(mesh: Mesh, weights: dict[str, Tensor], tmp_path: Path) -> None:
    plain = MMDiT(sizes(), MegatronProvider(mesh, torch.float32))
    model = loaded(write(tmp_path, weights), mesh)
    marks = {name: (p.__dict__, p.requires_grad) for name, p in plain.named_parameters()}
    assert marks == {name: (p.__dict__, p.requires_grad) for name, p in model.named_parameters()}
    assert any("idle_rows" in held for held, _ in marks.values())


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors["proj_out.bias"]


def add(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head"] = torch.zeros(3, 2)


def turn(tensors: dict[str, Tensor]) -> None:
    tensors["img_in.weight"] = torch.zeros(16, 64)


def count(tensors: dict[str, Tensor]) -> None:
    tensors["img_in.bias"] = torch.zeros(64, dtype=torch.int32)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (drop, r"proj_out\.bias is absent there and \(16,\) in the model$"),
        (add, r"lm_head is \(3, 2\) there and absent in the model$"),
        (turn, r"img_in\.weight is \(16, 64\) there and \(64, 16\) in the model$"),
        (count, r"img_in\.bias is I32 \(64,\) there, and must be one of F64, F32"),
    ],
)
def test_a_weight_that_is_not_the_models_is_named_with_both_shapes(
    mesh: Mesh, weights: dict[str, Tensor], tmp_path: Path, spoil: Callable[[dict[str, Tensor]], None], said: str
) -> None:
    spoiled = dict(weights)
    spoil(spoiled)
    with pytest.raises(ReleasedError, match=said) as refused:
        loaded(write(tmp_path, spoiled), mesh)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"num_layers": 60}, r"^model\.num_layers: 3, but .*config\.json says 60; set model\.num_layers to that$"),
        ({"axes_dims_rope": [4, 6, 6]}, r"^model\.axes_dims_rope: \[8, 4, 4\], but .* says \[4, 6, 6\]"),
        ({"zero_cond_t": True}, r"^model\.zero_cond_t: false, but .* says true; set model\.zero_cond_t to that$"),
        ({"guidance_embeds": True}, r"config\.json: not a config of this model: .*model\.guidance_embeds: true, but "),
        ({"qk_norm": 1}, r"config\.json: not a config of this model: qk_norm: Extra inputs are not permitted$"),
        ({"num_layers": "3"}, r"config\.json: not a config of this model: num_layers: Input should be a valid int"),
        (
            {"num_layers": 2, "joint_attention_dim": 9},
            r"^model\.num_layers: 3, .* 2; .*\nmodel\.joint_attention_dim: 24, .* 9; ",
        ),
    ],
)
def test_sizes_that_are_not_the_settings_are_named(
    mesh: Mesh, weights: dict[str, Tensor], tmp_path: Path, over: dict[str, object], said: str
) -> None:
    with pytest.raises(ReleasedError, match=said):
        loaded(write(tmp_path, weights, **over), mesh)


def test_a_size_that_the_file_leaves_out_is_the_released_one(
    mesh: Mesh, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    config = write(tmp_path, weights) / "transformer" / "config.json"
    said = json.loads(config.read_text())
    del said["num_attention_heads"]
    config.write_text(json.dumps(said))
    with pytest.raises(ReleasedError, match=r"^model\.num_attention_heads: 4, but .* says 24"):
        loaded(tmp_path, mesh)


def nothing(folder: Path) -> None:
    (folder / ONE).unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def half_a_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"num_layers": 3,')


def cut(folder: Path) -> None:
    (folder / ONE).write_bytes((folder / ONE).read_bytes()[:-1])


def no_safetensors(folder: Path) -> None:
    (folder / ONE).write_bytes(b"\x80\x02}q\x00.")


def twice(folder: Path) -> None:
    save_file(
        {"proj_out.bias": load_file(folder / ONE)["proj_out.bias"]}, folder / "diffusion_pytorch_model.fp16.safetensors"
    )


def lost_file(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"proj_out.bias": ONE, "img_in.bias": "other.safetensors"}}))


def no_index(folder: Path) -> None:
    (folder / INDEX).write_text("[]")


def outside(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"proj_out.bias": f"../transformer/{ONE}"}}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (nothing, r"transformer: holds no diffusion_pytorch_model\*\.safetensors"),
        (no_config, r"config\.json: No such file or directory; give a folder in diffusers' layout"),
        (half_a_config, r"config\.json: not a table in JSON: "),
        (cut, rf"{ONE}: not a whole safetensors file: "),
        (no_safetensors, rf"{ONE}: not a whole safetensors file: "),
        (twice, r"weight proj_out\.bias is in diffusion_pytorch_model\.fp16\.safetensors too"),
        (lost_file, r"1 of 2 files are missing: other\.safetensors"),
        (no_index, r"index\.json: no index of weights: TypeError"),
        (outside, r"weight_map must name files beside it"),
    ],
)
def test_a_damaged_folder_is_refused_by_what_is_wrong(
    mesh: Mesh, weights: dict[str, Tensor], tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    write(tmp_path, weights)
    spoil(tmp_path / "transformer")
    with pytest.raises(ReleasedError, match=said):
        loaded(tmp_path, mesh)
