"""The sampler walks the pipeline's way: the same sigmas, guidance and latents from the same noise."""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from torch import Tensor

from model.latent import PATCH
from model.sampler import SamplerError, ShiftConfig, Velocity, conditioned, euler, grid, guide, guided
from tests.unit.model.parity import ours, reference, sizes

RELEASED = ShiftConfig().model_dump() | {"use_dynamic_shifting": True, "time_shift_type": "exponential"}

# Latent cells of three pictures, odd numbers of patches among them.
CELLS = [(8, 8), (6, 12), (10, 2)]


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


def drawn() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Noise, prompts and negative prompts of samples as large as CELLS."""
    g = torch.Generator().manual_seed(7)
    noise = [torch.randn(y * x // PATCH**2, 16, generator=g) for y, x in CELLS]
    prompts = [torch.randn(length, 24, generator=g) for length in (7, 3, 11)]
    negatives = [torch.randn(length, 24, generator=g) for length in (2, 5, 2)]
    return noise, prompts, negatives


def from_diffusers(theirs: QwenImageTransformer2DModel, cells: list[tuple[int, int]], text: list[Tensor]) -> Velocity:
    def velocity(tokens: list[Tensor], sigma: Tensor) -> list[Tensor]:
        return [
            theirs(
                hidden_states=tokens[k][None],
                encoder_hidden_states=text[k][None],
                timestep=sigma[k : k + 1],
                img_shapes=[[(1, y // PATCH, x // PATCH)]],
                return_dict=False,
            )[0][0]
            for k, (y, x) in enumerate(cells)
        ]

    return velocity


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("whose", ["diffusers", "ours"])
@torch.no_grad()
def test_latents_equal_the_pipelines_for_the_same_noise(whose: str, scale: float) -> None:
    config = sizes(num_layers=2)
    theirs = reference(config, 11)
    noise, prompts, negatives = drawn()
    make = partial(conditioned, ours(config, theirs)) if whose == "ours" else partial(from_diffusers, theirs)
    mine = euler(guided(make(CELLS, prompts), make(CELLS, negatives), scale), noise, 6)
    pipeline = QwenImagePipeline(FlowMatchEulerDiscreteScheduler(**RELEASED), None, None, None, theirs)
    pipeline.set_progress_bar_config(disable=True)
    for k, (y, x) in enumerate(CELLS):
        wanted = pipeline(
            latents=noise[k][None],
            prompt_embeds=prompts[k][None],
            prompt_embeds_mask=torch.ones(1, len(prompts[k])),
            negative_prompt_embeds=negatives[k][None],
            negative_prompt_embeds_mask=torch.ones(1, len(negatives[k])),
            true_cfg_scale=scale,
            height=8 * y,
            width=8 * x,
            num_inference_steps=6,
            output_type="latent",
        ).images[0]
        assert (mine[k] - wanted).abs().max() < 1e-4
