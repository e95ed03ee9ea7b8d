"""A unit under each kind of recompute; `python tests/bench/recompute_case.py` prints the peak memory of each."""

import os
from collections.abc import Callable
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from model.config import MMDiTConfig, RecomputeConfig
from model.layout import Layout
from model.mmdit import MMDiT
from tests.bench.report import peak_growth

CONFIG = MMDiTConfig(
    num_layers=8,
    attention_head_dim=64,
    num_attention_heads=6,
    joint_attention_dim=768,
    axes_dims_rope=(16, 24, 24),
    blocks_per_gather=8,
)
PROMPTS, SIDE = (221, 94), 16

NONE, PEER = "none", "torch's checkpoint of each block"

# (settings, the least times less memory than none, the most times as long). Of eight blocks, since one block's
# activations are whole at a time, and with a tenth above what is executed for the rest and the machine's noise.
KINDS = {
    "norm, gelu": (RecomputeConfig(parts=("norm", "gelu")), 1.25, 1.10),
    "norm, gelu, core": (RecomputeConfig(parts=("norm", "gelu", "core")), 1.6, 1.15),
    "attention": (RecomputeConfig(parts=("attention",)), 1.45, 1.20),
    "mlp": (RecomputeConfig(parts=("mlp",)), 1.45, 1.22),
    "attention, mlp": (RecomputeConfig(parts=("attention", "mlp")), 3.0, 1.32),
    "every 2nd block": (RecomputeConfig(parts=("block",), every=2), 1.5, 1.27),
    "block": (RecomputeConfig(parts=("block",)), 3.0, 1.43),
}


def steps(kind: str) -> Callable[[], None]:
    """A forward and backward under `kind`; gradients stay allocated, as a training's do."""
    torch.manual_seed(0)
    model = MMDiT(CONFIG, None, KINDS[kind][0] if kind in KINDS else None)
    if kind == PEER:
        for block in model.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    layout = Layout.build([[(0, SIDE, SIDE)]] * len(PROMPTS), PROMPTS, CONFIG.axes_dims_rope)
    image = torch.randn(sum(layout.image_lengths), CONFIG.in_channels)
    text = torch.randn(sum(PROMPTS), CONFIG.joint_attention_dim)
    sigma = torch.full((len(PROMPTS),), 0.3)

    def step() -> None:
        model.zero_grad(set_to_none=False)
        model(image, text, sigma, layout).square().mean().backward()

    return step


def peak(kind: str) -> int:
    """Bytes that a step adds to this process's memory at most: activations, and what the backward holds at a time."""
    torch.set_num_threads(1)
    step = steps(kind)
    step()  # what is allocated once is not the step's
    return peak_growth(step)


def apart(kind: str) -> None:
    """Print the peak of `kind` from a process of its own, forked before anything has run backward."""
    child = os.fork()
    if not child:
        print(f"{peak(kind)} {kind}", flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"{kind}: its process ended with {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    for name in (NONE, *KINDS, PEER):
        apart(name)
