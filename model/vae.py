"""The image autoencoder: pictures to a posterior over latents and back.

The weights and their folder are diffusers' AutoencoderKLQwenImage; a picture is a video of one frame.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

# Pixels a latent cell covers a side (three stages that halve).
STRIDE = 8


class VaeError(ValueError):
    """A VAE folder or a picture that the VAE cannot take."""


class ImageVae:
    """The VAE in `folder`, for pictures; computes in `dtype` on `device`, takes and gives float32."""

    mean: Tensor  # [c] float32: latents_mean of its config
    std: Tensor  # [c] float32

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        if not (folder / "config.json").is_file():
            raise VaeError(f"{folder}: no config.json, so no VAE folder")
        self.dtype, self.device = dtype, torch.device(device)
        self._net = AutoencoderKLQwenImage.from_pretrained(folder, dtype=dtype, local_files_only=True)
        self._net.requires_grad_(False).eval().to(self.device)
        config = self._net.config
        self.channels: int = config.z_dim
        self.mean = torch.tensor(config.latents_mean, dtype=torch.float32)
        self.std = torch.tensor(config.latents_std, dtype=torch.float32)

    @torch.inference_mode()
    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance [b, c, h / 8, w / 8] of `pictures` [b, 3, h, w], uint8 or within [-1, 1]."""
        if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[2] % STRIDE or pictures.shape[3] % STRIDE:
            raise VaeError(
                f"pictures of shape {list(pictures.shape)}: need [b, 3, h, w], h and w multiples of {STRIDE}"
            )
        if pictures.dtype == torch.uint8:
            pictures = pictures.to(torch.float32) / 127.5 - 1
        frames = pictures[:, :, None].to(self.device, self.dtype)
        posterior = self._net.encode(frames).latent_dist
        return posterior.mean[:, :, 0].float().cpu(), posterior.logvar[:, :, 0].float().cpu()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [b, 3, 8 y, 8 x] within [-1, 1] of `latents` [b, c, y, x], not normalised."""
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise VaeError(f"latents of shape {list(latents.shape)}: this VAE decodes [b, {self.channels}, y, x]")
        frames = latents[:, :, None].to(self.device, self.dtype)
        return self._net.decode(frames).sample[:, :, 0].float().cpu()
