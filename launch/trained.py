"""A trained model from a checkpoint: what sampling and exporting start from."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from consumer.checkpoint import latest
from consumer.pieces import CheckpointReader
from launch.config import ConfigError, build
from model.config import MMDiTConfig
from model.mmdit import MMDiT


def open_checkpoint(root: Path, chosen: Path | None) -> CheckpointReader:
    """The `chosen` checkpoint, or the newest whole one under `root`."""
    path = chosen or latest(root)
    if path is None:
        raise ConfigError(f"checkpoint.path: {root} holds no whole checkpoint; train first, or give --checkpoint")
    return CheckpointReader(path)


def config_of(reader: CheckpointReader) -> MMDiTConfig:
    """The sizes of the model that was trained, whatever the settings say by now."""
    return build(MMDiTConfig, json.loads(json.dumps(reader.config["model"])))


def weights_of(reader: CheckpointReader) -> Iterator[tuple[str, Tensor]]:
    """Every weight's moving average, fp32 and whole; the weight itself where no average was kept."""
    for name in reader.names:
        yield name, reader.whole(name, "ema" if "ema" in reader.kinds(name) else "param")


def load_model(reader: CheckpointReader, dtype: torch.dtype, device: str) -> MMDiT:
    """The model on one device, with the averaged weights, for inference."""
    with torch.device("meta"):
        model = MMDiT(config_of(reader))
    state = {name: tensor.to(device, dtype) for name, tensor in weights_of(reader)}
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False).eval()
