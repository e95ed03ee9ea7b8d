"""Draw the configured prompts with the averaged weights of a checkpoint, and write them as one PNG.

    python launch/sample.py launch/configs/smoke.toml [--checkpoint DIR] [--out PNG] [key.path=value ...] [--show]

Without --checkpoint the newest one is taken; without --out the grid goes to grid.png in the run's folder.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from consumer.evaluate.grid import compose, find_font, save
from launch.config import ConfigError
from launch.sample_config import SampleConfig
from launch.settings import command_line, guarded
from launch.trained import load_model, open_checkpoint
from model.latent import denormalise, pack, unpack
from model.mmdit import MMDiT
from model.prompt import PromptEncoder
from model.sampler import conditioned, euler, guided
from model.vae import STRIDE, ImageVae
from producer.api.bucket import Bucket
from producer.encode import require_folders
from producer.encoder_config import EncoderConfig


def main() -> int:
    settings, arguments = command_line(__doc__, _options)
    config = settings.sample
    require_folders(settings.encoder.root)
    reader = open_checkpoint(settings.checkpoint.path, arguments.checkpoint)
    model = load_model(reader, getattr(torch, config.dtype), config.device)
    print(f"sampling {len(config.pictures)} pictures from {reader.path}, step {reader.step}", flush=True)
    texts, negative = encode(config, settings.encoder, model)
    encoder = settings.encoder
    vae = ImageVae(encoder.root / "vae", getattr(torch, encoder.dtype), encoder.device, encoder.tiling)
    check_channels(vae, model)
    pictures: list[np.ndarray] = []
    for start in range(0, len(texts), config.batch):
        chosen = range(start, min(start + config.batch, len(texts)))
        sizes = [config.pictures[k][1] for k in chosen]
        latents = draw(model, config, sizes, [texts[k] for k in chosen], negative, config.seed + start)
        pictures += [picture(vae, latent) for latent in latents]
        print(f"{len(pictures)} of {len(texts)} pictures", flush=True)
    captions = [prompt for prompt, _ in config.pictures]
    write(pictures, captions, config, arguments.out or settings.run.dir / "grid.png")
    return 0


def encode(config: SampleConfig, encoder: EncoderConfig, model: MMDiT) -> tuple[list[Tensor], Tensor]:
    """The hidden states of every picture's prompt, and of the negative prompt."""
    prompts = PromptEncoder(
        encoder.root, getattr(torch, encoder.dtype), encoder.device, max_tokens=encoder.max_text_tokens
    )
    if prompts.width != model.config.joint_attention_dim:
        raise ConfigError(
            f"encoder.root: the text encoder is {prompts.width} wide, the trained model reads "
            f"{model.config.joint_attention_dim} (joint_attention_dim); use the encoders it was trained with"
        )
    distinct = [*config.prompts, config.negative]
    states = dict(zip(distinct, prompts.encode(distinct), strict=True))
    return [states[prompt] for prompt, _ in config.pictures], states[config.negative]


def check_channels(vae: ImageVae, model: MMDiT) -> None:
    """Refuse a VAE of another latent size than the model's."""
    if vae.channels != model.config.out_channels:
        raise ConfigError(
            f"encoder.root: the VAE has {vae.channels} latent channels, the trained model {model.config.out_channels}"
        )


@torch.inference_mode()
def draw(
    model: MMDiT, config: SampleConfig, sizes: Sequence[Bucket], texts: Sequence[Tensor], negative: Tensor, seed: int
) -> list[Tensor]:
    """Normalised latents [c, y, x] of pictures of `sizes`; picture k starts from diffusers' noise of `seed` + k."""
    cells = [(size.height // STRIDE, size.width // STRIDE) for size in sizes]
    noise = [pack(_noise(model.config.out_channels, *cell, seed + k)) for k, cell in enumerate(cells)]
    velocity = conditioned(model, cells, texts)
    if config.cfg_scale > 1:
        velocity = guided(velocity, conditioned(model, cells, [negative] * len(cells)), config.cfg_scale)
    tokens = euler(velocity, noise, config.steps)
    return [unpack(sample, y, x) for sample, (y, x) in zip(tokens, cells, strict=True)]


def _noise(channels: int, y: int, x: int, seed: int) -> Tensor:
    return torch.randn(channels, y, x, generator=torch.Generator().manual_seed(seed))


def picture(vae: ImageVae, latent: Tensor) -> np.ndarray:
    """uint8 [h, w, 3] of a normalised latent [c, y, x]."""
    pixels = vae.decode(denormalise(latent, vae.mean, vae.std)[None])[0]
    return (pixels.permute(1, 2, 0) * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def write(pictures: Sequence[np.ndarray], captions: Sequence[str], config: SampleConfig, path: Path) -> None:
    """The grid at `path`: a column a size, or four where there is one size only."""
    columns = len(config.sizes) if len(config.sizes) > 1 else min(4, len(pictures))
    save(compose(pictures, captions, columns, find_font(config.font)), path)
    print(f"grid: {path}", flush=True)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="a step-N folder; by default the newest")
    parser.add_argument("--out", type=Path, metavar="PNG", help="the file to write")


if __name__ == "__main__":
    guarded(main)
