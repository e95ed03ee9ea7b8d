"""What a trainer must know of the encoders without loading them: their latents' statistics, and that the model fits."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launch.config import ConfigError
from model.config import MMDiTConfig


def latent_statistics(root: Path, model: MMDiTConfig) -> tuple[Tensor, Tensor]:
    """Mean and std [c] of the VAE's latents in the released layout at `root`; ConfigError if `model` does not fit."""
    vae, text = _config(root / "vae"), _config(root / "text_encoder")
    if vae["z_dim"] != model.out_channels:
        raise ConfigError(
            f"model.out_channels: {model.out_channels}, but {root}/vae has {vae['z_dim']} latent channels"
        )
    # Qwen2.5-VL configs keep the language model's sizes beside or inside text_config, by transformers version.
    width = text.get("text_config", text)["hidden_size"]
    if width != model.joint_attention_dim:
        raise ConfigError(
            f"model.joint_attention_dim: {model.joint_attention_dim}, but {root}/text_encoder gives {width}"
        )
    return torch.tensor(vae["latents_mean"]), torch.tensor(vae["latents_std"])


def _config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except OSError as error:
        raise ConfigError(
            f"encoder.root: {folder}/config.json: {error.strerror}; point encoder.root at folders in the released "
            f"layout, or make tiny ones with: python launch/make_encoders.py {folder.parent}"
        ) from None
