"""A trained transformer and its encoders as one folder that diffusers.QwenImagePipeline opens."""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.config import MMDiTConfig
from model.mmdit import MMDiT

# What the pipeline is made of beside the transformer, and the library and class of each.
_PARTS = {
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "Qwen2_5_VLForConditionalGeneration"),
    "tokenizer": ("transformers", "Qwen2Tokenizer"),
    "vae": ("diffusers", "AutoencoderKLQwenImage"),
}
WEIGHTS = "diffusion_pytorch_model"
# The released transformer's shards are about as large.
SHARD_BYTES = 5_000_000_000


class ExportError(ValueError):
    """There is nothing whole to export, or no place to write it."""


def export(
    folder: Path,
    state: Iterable[tuple[str, Tensor]],
    config: MMDiTConfig,
    encoders: Path,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `folder`: the weights `state` (whole fp32 tensors by diffusers' names, in any order) as `dtype`, and
    copies of the encoders and scheduler under `encoders`.

    The folder appears whole or not at all; an earlier export in its place is replaced, anything else is refused.
    Weights are taken one by one, so a shard is all that is held. Raises ExportError.
    """
    for part in _PARTS:
        if not (encoders / part).is_dir():
            raise ExportError(f"{encoders / part}: missing; an export takes {', '.join(_PARTS)} from there")
    if folder.exists() and any(folder.iterdir()) and not (folder / "model_index.json").is_file():
        raise ExportError(f"{folder}: holds other files than an export; give a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _write_transformer(aside / "transformer", state, config, dtype, shard_bytes)
        for part in _PARTS:
            shutil.copytree(encoders / part, aside / part)
        _write_json(aside / "model_index.json", _model_index())
        _put_in_place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_transformer(
    folder: Path, state: Iterable[tuple[str, Tensor]], config: MMDiTConfig, dtype: torch.dtype, shard_bytes: int
) -> None:
    folder.mkdir(parents=True)
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in MMDiT(config).state_dict().items()}
    shards = _Shards(folder, shard_bytes)
    for name, tensor in state:
        if name not in wanted:
            raise ExportError(f"weight {name}: not one of this model's, or given twice")
        if tuple(tensor.shape) != wanted[name]:
            raise ExportError(f"weight {name}: has shape {tuple(tensor.shape)}, the model's is {wanted[name]}")
        del wanted[name]
        shards.add(name, tensor.detach().to("cpu", dtype).contiguous())
    if wanted:
        names = ", ".join(f"{name} {shape}" for name, shape in list(wanted.items())[:5])
        raise ExportError(f"{len(wanted)} weights are missing, such as {names}")
    shards.close()
    _write_json(folder / "config.json", _signed("QwenImageTransformer2DModel") | config.released())


@dataclass
class _Shards:
    """Weights gathered into safetensors files of up to `limit` bytes, with the index that names each weight's file."""

    folder: Path
    limit: int
    gathered: dict[str, Tensor] = field(default_factory=dict)
    size: int = 0
    total: int = 0
    files: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, name: str, tensor: Tensor) -> None:
        if self.gathered and self.size + tensor.nbytes > self.limit:
            self._flush()
        self.gathered[name] = tensor
        self.size += tensor.nbytes
        self.total += tensor.nbytes

    def close(self) -> None:
        """Write what is left; only now the number of files is known, which is part of their names."""
        self._flush()
        places: dict[str, str] = {}
        for number, names in enumerate(self.files):
            final = f"{WEIGHTS}-{number + 1:05d}-of-{len(self.files):05d}.safetensors"
            os.replace(self._file(number), self.folder / final)
            places |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(places.items()))}
        _write_json(self.folder / f"{WEIGHTS}.safetensors.index.json", index)

    def _flush(self) -> None:
        save_file(self.gathered, self._file(len(self.files)), metadata={"format": "pt"})
        self.files.append(tuple(self.gathered))
        self.gathered, self.size = {}, 0

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.part"


def _signed(kind: str) -> dict[str, object]:
    return {"_class_name": kind, "_diffusers_version": version("diffusers")}


def _model_index() -> dict[str, object]:
    parts = _PARTS | {"transformer": ("diffusers", "QwenImageTransformer2DModel")}
    return _signed("QwenImagePipeline") | {name: list(parts[name]) for name in sorted(parts)}


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _put_in_place(aside: Path, folder: Path) -> None:
    old = aside.with_name(f"{aside.name}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(aside, folder)
    shutil.rmtree(old, ignore_errors=True)
