"""Released weights on several ranks: each holds its own slices, trains as if they had been there, and exports them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from consumer.checkpoint import save
from consumer.config import CheckpointConfig, EmaConfig
from consumer.ema import Ema
from consumer.pieces import CheckpointReader
from consumer.released import ReleasedError, load_released
from model.mmdit import MMDiT
from parallel.engine import Engine
from parallel.place import place
from parallel.provider import MegatronProvider
from tests.distributed import tiny
from tests.distributed.ranks import Ranks


def load_on_rank(folder: str, tp: int, sp: bool, precision: str) -> dict[str, Any]:
    """Load, compare with the file, save a checkpoint; then a step, beside an engine whose weights were copied in."""
    root, here, config = Path(folder), tiny.mesh(tp, sp), tiny.optim(precision)
    with torch.device("meta"):
        model = MMDiT(tiny.CONFIG, MegatronProvider(here, config.dtype))
    load_released(root / "out", model, here, config.dtype)
    whole, wrong = load_file(root / "weights.safetensors"), []
    for name, parameter in model.named_parameters():
        part = place(parameter, here)
        if not torch.equal(parameter, (whole[name] if part is None else part.of(whole[name])).to(config.dtype)):
            wrong.append(name)
    engine = Engine(model, config, here)
    save(CheckpointConfig(path=root / "saved", every=1), engine, Ema(EmaConfig(), engine), 1, {}, {}, here)
    other = tiny.build(root / "weights.safetensors", here, config)
    norms = []
    for trained in (engine, other):
        tiny.backward(trained, 0)
        norms.append(trained.step(1e-2)[0])
    pairs = zip(engine.shards(), other.shards(), strict=True)
    differ = [one.name for one, two in pairs if not torch.equal(one.tensors["param"], two.tensors["param"])]
    here.close()
    return {"wrong": wrong, "differ": differ, "norms": norms}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, encoders: Path) -> Path:
    """An export in shards, in bf16, and the same weights in one file."""
    # Not above: the ranks import this file, and these take seconds.
    from consumer.export import export
    from tests.unit.model.parity import reference

    folder = tmp_path_factory.mktemp("released")
    weights = {
        name: tensor.detach().bfloat16().float() for name, tensor in reference(tiny.CONFIG, 1).state_dict().items()
    }
    save_file(weights, folder / "weights.safetensors")
    export(folder / "out", sorted(weights.items()), tiny.CONFIG, encoders, torch.bfloat16, shard_bytes=100_000)
    return folder


@pytest.mark.parametrize(
    ("world", "tp", "sp", "precision"),
    [(2, 2, False, "bf16"), (2, 2, True, "fp32"), (4, 4, False, "fp32"), (4, 2, True, "bf16")],
)
def test_every_rank_has_its_slices_trains_with_them_and_exports_the_same_bytes(
    ranks: Ranks, released: Path, encoders: Path, tmp_path: Path, world: int, tp: int, sp: bool, precision: str
) -> None:
    from consumer.export import export

    for name in ("out", "weights.safetensors"):
        (tmp_path / name).symlink_to(released / name)
    for said in ranks.run(world, load_on_rank, folder=tmp_path, tp=tp, sp=sp, precision=precision):
        assert said["wrong"] == [] and said["differ"] == [] and said["norms"][0] == said["norms"][1] > 0
    reader = CheckpointReader(tmp_path / "saved" / "step-00000001")
    state = ((name, reader.whole(name, "param")) for name in reader.names)
    export(tmp_path / "again", state, tiny.CONFIG, encoders, torch.bfloat16, shard_bytes=100_000)
    files = sorted(path.name for path in (released / "out" / "transformer").iterdir())
    assert len(files) > 4
    for name in files:
        assert (released / "out" / "transformer" / name).read_bytes() == (
            tmp_path / "again" / "transformer" / name
        ).read_bytes(), name


def refuse_on_rank(folder: str) -> str:
    here = tiny.mesh(2, False)
    with torch.device("meta"):
        model = MMDiT(tiny.CONFIG, MegatronProvider(here, torch.bfloat16))
    with pytest.raises(ReleasedError) as refused:
        load_released(Path(folder), model, here, torch.bfloat16)
    assert all(parameter.is_meta for parameter in model.parameters())
    here.close()
    return str(refused.value)


def test_weights_of_another_model_are_refused_on_all_ranks_alike_and_before_memory_is_taken(
    ranks: Ranks, released: Path, tmp_path: Path
) -> None:
    transformer = tmp_path / "transformer"
    transformer.mkdir()
    (transformer / "config.json").write_bytes((released / "out" / "transformer" / "config.json").read_bytes())
    weights = load_file(released / "weights.safetensors")
    # What one of two ranks holds, as a converter for tensor parallelism would leave it.
    weights["transformer_blocks.0.attn.to_q.weight"] = weights["transformer_blocks.0.attn.to_q.weight"][:32].clone()
    save_file(weights, transformer / "diffusion_pytorch_model.safetensors")
    one, other = ranks.run(2, refuse_on_rank, folder=tmp_path)
    assert one == other
    assert "transformer_blocks.0.attn.to_q.weight is (32, 64) there and (64, 64) in the model" in one
