"""Achieved FLOP/s and MFU of training steps at full width, cut to the blocks that fit with optimizer state."""

from pathlib import Path

import pytest
import torch

from model.config import MMDiTConfig
from model.count import utilisation
from parallel.config import MeshConfig
from parallel.mesh import Mesh
from tests.bench.report import record
from tests.gpu.speed import Trainer, blocks_that_fit, vae_seconds

pytestmark = pytest.mark.gpu

PEAK = 989e12  # dense bf16 FLOP/s of an H100 or H200 (NVIDIA's data sheets)
FIRST, BEST_RIVAL = 0.50, 0.33

# Resolution: patches a side, samples a step.
CASES = {"256p": (16, 32), "640p": (40, 8), "1328p": (83, 2)}


def test_steps_at_full_width() -> None:
    memory = torch.cuda.get_device_properties(0).total_memory
    config = MMDiTConfig(num_layers=blocks_that_fit(memory, MMDiTConfig()))
    mesh = Mesh.start(MeshConfig())
    try:
        trainer = Trainer(config, mesh)
        for name, (side, samples) in CASES.items():
            taken, flops = trainer.seconds(side, samples, turns=7)
            mfu = utilisation(flops, taken, PEAK)
            print(f"\n{config.num_layers} blocks, {name}, {samples} samples: {taken:.3f} s a step, ", end="")
            print(
                f"{flops / taken / 1e12:.0f} TFLOP/s, MFU {mfu:.1%} (best rival {BEST_RIVAL:.0%}, wanted {FIRST:.0%})"
            )
            case = {
                "ours": mfu,
                "peer": BEST_RIVAL,
                "ratio": mfu / BEST_RIVAL,
                "target": FIRST / BEST_RIVAL,
                "unit": "MFU",
            }
            record("model.json", {f"mmdit step on CUDA, {name}": case})
            assert flops > 0 and taken > 0
    finally:
        mesh.close()


def test_the_vae_on_pictures_of_full_size(tmp_path: Path) -> None:
    for side, pictures in ((256, 16), (1328, 2)):
        taken = vae_seconds(tmp_path / str(side), side, pictures, "cuda", turns=5)
        for name, (ours, theirs) in taken.items():
            print(f"\nVAE {name}, {pictures} pictures of {side}x{side}: {ours:.3f} s, diffusers {theirs:.3f} s")
            case = {"ours": ours, "peer": theirs, "ratio": theirs / ours, "target": 1.0, "unit": "s"}
            record("model.json", {f"vae {name} on CUDA, {side}p": case})
            assert ours > 0
