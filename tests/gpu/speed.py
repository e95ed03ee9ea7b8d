"""Training steps at full width, optimizer included; what `make gpu` tabulates, and a CPU can try small."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage

from model.config import MMDiTConfig
from model.count import training_flops
from model.init import fill
from model.layout import Layout
from model.mmdit import MMDiT
from model.vae import ImageVae
from parallel.config import OptimConfig
from parallel.engine import Engine
from parallel.mesh import Mesh
from parallel.provider import MegatronProvider

# Bytes a parameter takes in training: bf16 weight, fp32 gradient, main weight and two moments.
STATE_BYTES = 2 + 4 + 4 + 8

TEXT = 256


def blocks_that_fit(memory_bytes: int, config: MMDiTConfig) -> int:
    """Blocks whose weights and optimizer state leave a quarter of the memory to activations."""
    width = config.width
    per_block = 36 * width * width * STATE_BYTES  # two modulations of 6, two attentions of 4, two MLPs of 8 squares
    return max(1, min(config.num_layers, int(0.75 * memory_bytes / per_block)))


class Trainer:
    """One rank's engine on a model of `config`."""

    def __init__(self, config: MMDiTConfig, mesh: Mesh) -> None:
        self.config, self.mesh = config, mesh
        optim = OptimConfig(overlap_grads=False, overlap_params=False)
        model = MMDiT(config, MegatronProvider(mesh, optim.dtype))
        fill(model, 0)
        self.engine = Engine(model, optim, mesh)

    def seconds(self, side: int, samples: int, turns: int) -> tuple[float, int]:
        """Median seconds of a step on `samples` pictures of `side` patches a side, and its model FLOPs."""
        device, dtype = self.mesh.device, torch.bfloat16
        layout = Layout.build([[(0, side, side)]] * samples, [TEXT] * samples, self.config.axes_dims_rope).to(device)
        image = torch.randn(samples * side**2, self.config.in_channels, device=device, dtype=dtype)
        text = torch.randn(samples * TEXT, self.config.joint_attention_dim, device=device, dtype=dtype)
        sigma = torch.rand(samples, device=device)
        taken = []
        for _ in range(turns + 2):  # the first two compile and warm up
            start = time.perf_counter()
            self.engine.zero_grad()
            self.engine.module(image, text, sigma, layout).float().square().mean().backward()
            self.engine.finish(1.0)
            self.engine.step(1e-4)
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
        return sorted(taken[2:])[turns // 2], samples * training_flops(self.config, side**2, TEXT)


def vae_seconds(
    folder: Path, side: int, pictures: int, device: str, turns: int, base: int = 96
) -> dict[str, tuple[float, float]]:
    """Median seconds that our VAE and diffusers' take in bf16 to encode and to decode; the same random weights.

    Both start from pictures on the CPU and end with their result there, as producers and samplers use them.
    """
    torch.manual_seed(0)
    AutoencoderKLQwenImage(base_dim=base).save_pretrained(folder)
    ours = ImageVae(folder, torch.bfloat16, device)
    peer = AutoencoderKLQwenImage.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval().requires_grad_(False)
    pixels = torch.rand(pictures, 3, side, side) * 2 - 1
    latents = torch.randn(pictures, ours.channels, side // 8, side // 8)

    def placed(batch: torch.Tensor) -> torch.Tensor:
        return batch[:, :, None].to(device, torch.bfloat16)

    with torch.inference_mode():
        return {
            "encode": _both(
                lambda: ours.encode(pixels), lambda: peer.encode(placed(pixels)).latent_dist.mean.float().cpu(), turns
            ),
            "decode": _both(
                lambda: ours.decode(latents), lambda: peer.decode(placed(latents)).sample.float().cpu(), turns
            ),
        }


def _both(ours: Callable[[], object], peer: Callable[[], object], turns: int) -> tuple[float, float]:
    """Median seconds of each, taken in turns after one to warm up; what they run ends on the CPU."""
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns + 1):
        for run, seconds in zip((ours, peer), taken, strict=True):
            start = time.perf_counter()
            run()
            if turn:
                seconds.append(time.perf_counter() - start)
    return sorted(taken[0])[turns // 2], sorted(taken[1])[turns // 2]
