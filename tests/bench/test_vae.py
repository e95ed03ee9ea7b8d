"""Our VAE against diffusers' on the same pictures, weights and threads. Run with `make bench`."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage

from model.vae import ImageVae
from model.vae_tiles import Tiling
from tests.bench.report import peak_growth, record

RUNS = 7
BATCH, SIDE = 2, 256
BASE = 48  # of the released 96, so that a machine without a GPU is done in a minute
TARGET = 2.2


def pair(folder: Path, dtype: torch.dtype, **over: Any) -> tuple[ImageVae, Any]:
    """Ours and diffusers', of the same random weights."""
    torch.manual_seed(0)
    AutoencoderKLQwenImage(base_dim=BASE).save_pretrained(folder)
    peer = AutoencoderKLQwenImage.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)
    return ImageVae(folder, dtype, **over), peer


def compare(ours: Callable[[], object], peer: Callable[[], object]) -> tuple[float, float, int, int]:
    """Median seconds of each over alternating runs after one to warm up, and the bytes each needs at its peak."""
    peaks = []
    for run in (ours, peer):
        run()
        peaks.append(peak_growth(run))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for k in range(RUNS):
        for mine in (True, False) if k % 2 else (False, True):
            start = time.perf_counter()
            (ours if mine else peer)()
            seconds[mine].append(time.perf_counter() - start)
    return statistics.median(seconds[True]), statistics.median(seconds[False]), peaks[0], peaks[1]


def note(name: str, got: tuple[float, float, int, int], target: float) -> None:
    mine, theirs, room, their_room = got
    record(
        "model.json",
        {
            name: {"ours": mine, "peer": theirs, "ratio": theirs / mine, "target": target, "unit": "s"},
            f"{name}, memory": {
                "ours": room,
                "peer": their_room,
                "ratio": their_room / max(room, 1),
                "target": 1.0,
                "unit": "bytes",
            },
        },
    )
    print(
        f"  {name:18} ours {mine:6.3f} s, {room / 2**20:5.0f} MiB   diffusers {theirs:6.3f} s, "
        f"{their_room / 2**20:5.0f} MiB   {theirs / mine:.2f}x of {target}x"
    )


def title(said: str) -> None:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"\n{said}, base_dim {BASE}, CPU, {torch.get_num_threads()} threads, load {load}")


# First, since large blocks left free by timed runs would be filled again here and count.
def test_memory_of_a_large_picture_in_tiles(tmp_path: Path) -> None:
    tiled, _ = pair(tmp_path, torch.float32, tiling=Tiling(above=512))
    whole = ImageVae(tmp_path)
    title("VAE, a picture of 768x768, float32")
    pictures = torch.rand(1, 3, 768, 768) * 2 - 1
    latents = torch.randn(1, 16, 96, 96)
    for name, run in (("encode", lambda vae: vae.encode(pictures)), ("decode", lambda vae: vae.decode(latents))):
        rooms = []
        for vae in (tiled, whole):
            vae.encode(pictures[..., :256, :256]), vae.decode(latents[..., :32, :32])
            start = time.perf_counter()
            rooms.append((peak_growth(lambda vae=vae, run=run: run(vae)) / 2**20, time.perf_counter() - start))
        (room, seconds), (whole_room, whole_seconds) = rooms
        print(f"  {name}: tiles {room:.0f} MiB in {seconds:.2f} s, whole {whole_room:.0f} MiB in {whole_seconds:.2f} s")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_time_and_memory_of_encoding_and_decoding(dtype: torch.dtype, tmp_path: Path) -> None:
    ours, peer = pair(tmp_path, dtype)
    pictures = torch.rand(BATCH, 3, SIDE, SIDE) * 2 - 1
    latents = torch.randn(BATCH, 16, SIDE // 8, SIDE // 8)
    suffix = "" if dtype == torch.float32 else ", bf16"
    title(f"VAE, {BATCH} pictures of {SIDE}x{SIDE}, {str(dtype).removeprefix('torch.')}")
    with torch.inference_mode():
        frames, cells = pictures[:, :, None].to(dtype), latents[:, :, None].to(dtype)
        if dtype == torch.float32:
            torch.testing.assert_close(ours.encode(pictures)[0], peer.encode(frames).latent_dist.mean[:, :, 0])
        got = compare(lambda: ours.encode(pictures), lambda: peer.encode(frames).latent_dist.mean)
        note(f"vae encode{suffix}", got, TARGET)
        got = compare(lambda: ours.decode(latents), lambda: peer.decode(cells).sample)
        note(f"vae decode{suffix}", got, TARGET)
