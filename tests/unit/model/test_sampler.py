"""The sampler walks the pipeline's way: the same sigmas, guidance and latents from the same noise."""

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from PIL import Image
from torch import Tensor

from model.latent import PATCH, pack
from model.sampler import SamplerError, ShiftConfig, Velocity, conditioned, euler, grid, guide, guided, layered_grid
from tests.unit.model.parity import ours, reference, sizes

RELEASED = ShiftConfig().model_dump() | {"use_dynamic_shifting": True, "time_shift_type": "exponential"}


@pytest.mark.parametrize(
    ("tokens", "sigmas"),
    [
        (256, [1, 0.744611, 0.426673, 0.02, 0]),
        (1600, [1, 0.752682, 0.436985, 0.02, 0]),
        (4096, [1, 0.766709, 0.455614, 0.02, 0]),
        (6889, [1, 0.780980, 0.475549, 0.02, 0]),
    ],
)
def test_four_steps_have_the_published_sigmas(tokens: int, sigmas: list[float]) -> None:
    assert grid(tokens, 4).tolist() == pytest.approx(sigmas, abs=1e-6)


@pytest.mark.parametrize("steps", [2, 7, 50])
@pytest.mark.parametrize("tokens", [1, 256, 3000, 9000])
def test_sigmas_are_the_schedulers(tokens: int, steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**RELEASED)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(tokens, 256, 8192, 0.5, 0.9))
    assert torch.allclose(grid(tokens, steps), scheduler.sigmas, atol=2e-6, rtol=0)


def test_one_step_goes_from_noise_to_data() -> None:
    assert grid(256, 1).tolist() == [1, 0]


def test_no_steps_are_refused() -> None:
    with pytest.raises(SamplerError, match="0 sampling steps"):
        grid(256, 0)


def test_guidance_keeps_the_length_of_every_token() -> None:
    positive, negative = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0)).unbind()
    out = guide(positive, negative, 4.0)
    assert torch.allclose(out.norm(dim=-1), positive.norm(dim=-1))
    straight = negative + 4 * (positive - negative)
    assert torch.allclose(torch.cosine_similarity(out, straight, dim=-1), torch.ones(9))
    assert torch.equal(guide(torch.zeros(1, 16), torch.zeros(1, 16), 4.0), torch.zeros(1, 16))


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("tokens", [64, 1600, 4096])
def test_layered_sigmas_are_the_schedulers(tokens: int, steps: int) -> None:
    settings = {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": None}
    scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    mu = (tokens / (256 * 256 / 16 / 16)) ** 0.5
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0, steps + 1)[:-1], mu=mu)
    assert torch.allclose(layered_grid(tokens, steps), scheduler.sigmas, atol=2e-6, rtol=0)


def test_four_layered_steps_at_640_have_the_published_sigmas() -> None:
    assert layered_grid(1600, 4).tolist() == pytest.approx([1, 0.882353, 0.714286, 0.454545, 0], abs=1e-6)
    with pytest.raises(SamplerError, match="0 sampling steps"):
        layered_grid(1600, 0)


def test_each_sample_follows_its_own_grid() -> None:
    seen: list[Tensor] = []

    def velocity(tokens: list[Tensor], sigma: Tensor) -> list[Tensor]:
        seen.append(sigma)
        return [torch.ones_like(x) for x in tokens]

    noise = [torch.zeros(4, 16), torch.zeros(9, 16)]
    grids = [layered_grid(64, 3), grid(9, 3)]
    out = euler(velocity, noise, 3, grids=grids)
    assert torch.equal(torch.stack(seen), torch.stack(grids, dim=1)[:-1])
    assert all(torch.allclose(x, torch.full_like(x, -1)) for x in out)
    for wrong in ([grid(4, 3)], [grid(4, 3), grid(9, 2)]):
        with pytest.raises(SamplerError, match="for 2 samples: each needs one of 4"):
            euler(velocity, noise, 3, grids=wrong)


def test_euler_lands_on_the_data_of_a_straight_flow() -> None:
    """With v = (x - data) / sigma every step stays on the line from noise to data, so the end is the data."""
    g = torch.Generator().manual_seed(1)
    data = [torch.randn(n, 64, generator=g) for n in (4, 9)]
    noise = [torch.randn(n, 64, generator=g) for n in (4, 9)]

    def velocity(tokens: list[Tensor], sigma: Tensor) -> list[Tensor]:
        return [(x - x0) / s for x, x0, s in zip(tokens, data, sigma, strict=True)]

    seen: list[int] = []
    out = euler(velocity, noise, 5, progress=seen.append)
    assert seen == [0, 1, 2, 3, 4]
    assert all(torch.allclose(x, x0, atol=1e-5) for x, x0 in zip(out, data, strict=True))


def from_diffusers(
    theirs: QwenImageTransformer2DModel,
    cells: Sequence[tuple[int, int]],
    text: Sequence[Tensor],
    references: Sequence[Sequence[Tensor]] | None = None,
) -> Velocity:
    shown = references or [[]] * len(cells)

    def velocity(tokens: list[Tensor], sigma: Tensor) -> list[Tensor]:
        return [
            theirs(
                hidden_states=torch.cat([tokens[k], *map(pack, shown[k])])[None],
                encoder_hidden_states=text[k][None],
                timestep=sigma[k : k + 1],
                img_shapes=[[(1, y // PATCH, x // PATCH) for y, x in [cell, *(r.shape[1:] for r in shown[k])]]],
                return_dict=False,
            )[0][0, : len(tokens[k])]
            for k, cell in enumerate(cells)
        ]

    return velocity


Drawn = tuple[list[tuple[int, int]], list[Tensor], list[Tensor], list[Tensor]]


def unit(draw: random.Random, channels: int, width: int) -> Drawn:
    """Sizes in latent cells, noise, prompts and negative prompts of some samples."""
    g = torch.Generator().manual_seed(draw.randrange(2**31))
    cells = [(2 * draw.randint(1, 6), 2 * draw.randint(1, 6)) for _ in range(draw.randint(1, 3))]
    noise = [torch.randn(y * x // PATCH**2, 4 * channels, generator=g) for y, x in cells]
    prompts, negatives = ([torch.randn(draw.randint(1, 12), width, generator=g) for _ in cells] for _ in range(2))
    return cells, noise, prompts, negatives


def pipelines_arguments(
    cell: tuple[int, int], noise: Tensor, prompt: Tensor, negative: Tensor, scale: float, steps: int
) -> dict[str, object]:
    return {
        "latents": noise[None],
        "prompt_embeds": prompt[None],
        "prompt_embeds_mask": torch.ones(1, len(prompt)),
        "negative_prompt_embeds": negative[None],
        "negative_prompt_embeds_mask": torch.ones(1, len(negative)),
        "true_cfg_scale": scale,
        "height": 8 * cell[0],
        "width": 8 * cell[1],
        "num_inference_steps": steps,
        "output_type": "latent",
    }


def assert_equal(mine: Tensor, wanted: Tensor) -> None:
    assert mine.shape == wanted.shape
    assert (mine - wanted).abs().max() < 1e-4


# Twenty units of ours; a few of theirs show that the steps alone differ in nothing.
RUNS = [("ours", seed) for seed in range(20)] + [("diffusers", seed) for seed in range(4)]


@pytest.mark.parametrize(("whose", "seed"), RUNS)
@torch.no_grad()
def test_latents_equal_the_pipelines_for_the_same_noise(whose: str, seed: int) -> None:
    draw = random.Random(seed)
    config = sizes(num_layers=draw.choice([1, 2, 3]), num_attention_heads=draw.choice([2, 4]))
    theirs = reference(config, seed)
    cells, noise, prompts, negatives = unit(draw, config.out_channels, config.joint_attention_dim)
    scale, steps = draw.choice([1.0, 2.5, 4.0]), draw.randint(2, 6)
    make = partial(conditioned, ours(config, theirs)) if whose == "ours" else partial(from_diffusers, theirs)
    mine = euler(guided(make(cells, prompts), make(cells, negatives), scale), noise, steps)
    pipeline = QwenImagePipeline(FlowMatchEulerDiscreteScheduler(**RELEASED), None, None, None, theirs)
    pipeline.set_progress_bar_config(disable=True)
    for k, sample in enumerate(zip(cells, noise, prompts, negatives, strict=True)):
        wanted = pipeline(**pipelines_arguments(*sample, scale, steps)).images[0]
        assert_equal(mine[k], wanted)


@pytest.fixture(scope="module")
def vae(encoders: Path) -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage.from_pretrained(encoders / "vae").eval()


@pytest.mark.parametrize(("whose", "seed"), RUNS)
@torch.no_grad()
def test_latents_of_edits_equal_the_pipelines_for_the_same_noise(
    whose: str, seed: int, vae: AutoencoderKLQwenImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples with one to three references of their own sizes, in one unit; the pipeline takes one at a time."""
    monkeypatch.setattr(edit_plus, "VAE_IMAGE_SIZE", 48 * 48)
    draw = random.Random(seed)
    config = sizes(num_layers=2, num_attention_heads=draw.choice([2, 4]), in_channels=64, out_channels=16)
    theirs = reference(config, seed)
    pipeline = QwenImageEditPlusPipeline(FlowMatchEulerDiscreteScheduler(**RELEASED), vae, None, None, None, theirs)
    pipeline.set_progress_bar_config(disable=True)
    cells, noise, prompts, negatives = unit(draw, config.out_channels, config.joint_attention_dim)
    pictures = [[photograph(draw) for _ in range(draw.randint(1, 3))] for _ in cells]
    references = [[latent(pipeline, picture) for picture in shown] for shown in pictures]
    scale, steps = draw.choice([1.0, 4.0]), draw.randint(2, 5)
    make = partial(conditioned, ours(config, theirs)) if whose == "ours" else partial(from_diffusers, theirs)
    velocity = guided(make(cells, prompts, references), make(cells, negatives, references), scale)
    mine = euler(velocity, noise, steps)
    for k, sample in enumerate(zip(cells, noise, prompts, negatives, strict=True)):
        wanted = pipeline(image=pictures[k], **pipelines_arguments(*sample, scale, steps)).images[0]
        assert_equal(mine[k], wanted)
        without = euler(make(cells[k : k + 1], prompts[k : k + 1]), noise[k : k + 1], steps)[0]
        assert (without - wanted).abs().max() > 1e-2


def photograph(draw: random.Random) -> Image.Image:
    pixels = np.random.default_rng(draw.randrange(2**31)).integers(
        0, 256, (60, draw.choice([30, 60, 110]), 3), np.uint8
    )
    return Image.fromarray(pixels)


def latent(pipeline: QwenImageEditPlusPipeline, picture: Image.Image) -> Tensor:
    """The normalised latent [c, y, x] that the pipeline makes of a reference."""
    width, height = edit_plus.calculate_dimensions(edit_plus.VAE_IMAGE_SIZE, picture.width / picture.height)
    pixels = pipeline.image_processor.preprocess(picture, height, width).unsqueeze(2)
    return pipeline._encode_vae_image(pixels, None)[0, :, 0]
