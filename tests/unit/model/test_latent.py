"""Packing and normalisation are the pipeline's."""

import pytest
import torch
from diffusers import QwenImagePipeline

from model.latent import LatentError, denormalise, normalise, pack, unpack


@pytest.mark.parametrize(("y", "x"), [(2, 2), (6, 4), (2, 10)])
def test_packing_equals_the_pipelines(y: int, x: int) -> None:
    latent = torch.randn(16, y, x, generator=torch.Generator().manual_seed(y * x))
    theirs = QwenImagePipeline._pack_latents(latent[None, None], 1, 16, y, x)[0]
    assert torch.equal(pack(latent), theirs)
    assert torch.equal(unpack(theirs, y, x), latent)
    assert torch.equal(QwenImagePipeline._unpack_latents(pack(latent)[None], 8 * y, 8 * x, 8)[0, :, 0], latent)


def test_a_feature_is_its_channel_then_its_place_in_the_patch() -> None:
    latent = torch.arange(2 * 4 * 4).reshape(2, 4, 4)
    assert pack(latent)[1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]


def test_an_odd_latent_is_refused_with_its_size() -> None:
    with pytest.raises(LatentError, match="3x4"):
        pack(torch.zeros(16, 3, 4))


def test_tokens_of_another_size_are_refused_with_both_numbers() -> None:
    with pytest.raises(LatentError, match=r"5 tokens .* takes 6 tokens"):
        unpack(torch.zeros(5, 64), 4, 6)


def test_normalising_takes_half_precision_and_comes_back() -> None:
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5])
    latent = torch.tensor([[[3.0]], [[-1.0]]], dtype=torch.float16)
    normal = normalise(latent, mean, std)
    assert normal.dtype == torch.float32
    assert normal.flatten().tolist() == [1.0, 2.0]
    assert torch.equal(denormalise(normal, mean, std), latent.float())
