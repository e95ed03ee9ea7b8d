"""Weights in diffusers' layout, as published and as consumer/export.py writes them, straight into any layout of ranks.

    FOLDER/transformer/
        config.json                                        sizes and flags
        diffusion_pytorch_model*.safetensors               the weights, in one file or several
        diffusion_pytorch_model.safetensors.index.json     names the files; without it, all that there are

Names are the released ones already (model/mmdit.py), so there is nothing to convert.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from consumer.export import WEIGHTS
from model.config import MMDiTConfig
from model.mmdit import MMDiT
from parallel.mesh import Mesh
from parallel.meta import allocate
from parallel.place import Place, place, whole_shape

# safetensors' names of float types, from the widest.
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


class ReleasedError(ValueError):
    """A folder of released weights is incomplete, damaged or of another model; names the file, setting or weight."""


@dataclass(frozen=True)
class _Stored:
    """Where a weight is."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def load_released(folder: Path, model: MMDiT, mesh: Mesh, dtype: torch.dtype) -> None:
    """Give `model`, built on the meta device, the weights in `folder` as `dtype`: of each this rank's slice alone.

    Beside the model at most one weight's slice is held, so the peak is little more than the rank's share. Everything
    that files say of themselves is checked before memory is taken. Raises ReleasedError, on all ranks alike.
    """
    folder = check_released(folder, model.config)
    stored = _stored(folder)
    _check_weights(folder, stored, {name: whole_shape(held, mesh) for name, held in model.named_parameters()})
    allocate(model, mesh.device, dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _read(stored[name].file, name, place(parameter, mesh), parameter)


def check_released(folder: Path, config: MMDiTConfig) -> Path:
    """The folder of the weights themselves at or in `folder`; ReleasedError if it is not of a model of `config`."""
    folder = folder / "transformer" if (folder / "transformer").is_dir() else folder
    _check_config(folder / "config.json", config)
    return folder


def _check_config(path: Path, config: MMDiTConfig) -> None:
    """Refuse sizes and flags that are not the settings', naming each; what the file leaves out has its default."""
    text = _text(path)
    try:
        theirs = MMDiTConfig.from_released(text).released()
    except ValidationError as error:
        said = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}".removeprefix(": ") for item in error.errors()]
        raise ReleasedError(f"{path}: not a config of this model: {'; '.join(said)}") from None
    except (ValueError, TypeError) as error:
        raise ReleasedError(f"{path}: not a table in JSON: {error}") from None
    wrong = [
        f"model.{name}: {json.dumps(ours)}, but {path} says {json.dumps(theirs[name])}; set model.{name} to that"
        for name, ours in config.released().items()
        if ours != theirs[name]
    ]
    if wrong:
        raise ReleasedError("\n".join(wrong))


def _stored(folder: Path) -> dict[str, _Stored]:
    """Every weight in `folder`, from the files' headers."""
    found: dict[str, _Stored] = {}
    for file in _files(folder):
        with _open(file) as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                if name in found:
                    raise ReleasedError(
                        f"{file}: weight {name} is in {found[name].file.name} too; keep one of the files"
                    )
                part = opened.get_slice(name)
                found[name] = _Stored(file, tuple(part.get_shape()), part.get_dtype())
    return found


def _files(folder: Path) -> list[Path]:
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if not index.exists():
        files = sorted(folder.glob(f"{WEIGHTS}*.safetensors"))
        if not files:
            raise ReleasedError(f"{folder}: holds no {WEIGHTS}*.safetensors; give the folder of a released model")
        return files
    names = _named(index)
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise ReleasedError(f"{folder}: {len(missing)} of {len(names)} files are missing: {', '.join(missing)}")
    return [folder / name for name in sorted(names)]


def _named(index: Path) -> set[str]:
    """The files that an index names."""
    try:
        names = set(json.loads(_text(index))["weight_map"].values())
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ReleasedError(f"{index}: no index of weights: {error!r}") from None
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ReleasedError(f"{index}: weight_map must name files beside it")
    return names


def _check_weights(folder: Path, stored: dict[str, _Stored], wanted: dict[str, tuple[int, ...]]) -> None:
    """Refuse weights that are not the model's, naming the first few."""
    wrong = []
    for name in sorted(stored.keys() | wanted.keys()):
        there, here = stored.get(name), wanted.get(name)
        if (there.shape if there else None) != here:
            wrong.append(f"{name} is {there.shape if there else 'absent'} there and {here or 'absent'} in the model")
        elif there and there.dtype not in _FLOATS:
            wrong.append(f"{name} is {there.dtype} {there.shape} there, and must be one of {', '.join(_FLOATS)}")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ReleasedError(f"{folder}: weights of another model: {'; '.join(wrong[:5])}{more}")


def _read(file: Path, name: str, part: Place | None, into: torch.Tensor) -> None:
    """Copy the slice `part` of a weight into `into`, which casts it."""
    # Opened for one weight: the pages of a file that were read count as this process's memory until it is closed.
    with _open(file) as opened:
        whole = opened.get_slice(name)
        rows = slice(part.start, part.stop) if part else slice(None)
        try:
            into.copy_(whole[rows] if part is None or part.dim == 0 else whole[:, rows])
        except SafetensorError as error:
            raise ReleasedError(f"{file}: weight {name}: {error}") from None


def _open(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise ReleasedError(f"{file}: not a whole safetensors file: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ReleasedError(f"{path}: {error.strerror}; give a folder in diffusers' layout") from None
