"""Training steps at full width, optimizer included; what `make gpu` tabulates, and a CPU can try small."""

import time

import torch

from model.count import training_flops
from model.init import fill
from model.layout import Layout
from model.mmdit import MMDiT, MMDiTConfig
from parallel.engine import Engine, OptimConfig
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
