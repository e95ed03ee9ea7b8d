"""The VAE class gives the numbers of the reference, and the tiny weights keep pictures."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from skimage import data

from model.latent import normalise
from model.vae import ImageVae, VaeError


def golden(folder: Path) -> Path:
    """Weights by which rounding grows a hundredfold (hence the tolerances below).

    The reference recipe: element j of parameter n, names sorted, is 0.3 sin(1.7 n + 2.4 j), plus 1 for a gamma.
    """
    net = AutoencoderKLQwenImage(base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    with torch.no_grad():
        for n, (name, value) in enumerate(sorted(net.named_parameters())):
            wave = 0.3 * torch.sin(1.7 * n + 2.4 * torch.arange(value.numel(), dtype=torch.float64))
            value.copy_((wave + name.endswith(".gamma")).reshape(value.shape))
    net.save_pretrained(folder)
    return folder


def test_encoding_gives_the_golden_posterior(tmp_path: Path) -> None:
    vae = ImageVae(golden(tmp_path))
    mean, logvar = vae.encode(torch.sin(0.05 * torch.arange(3 * 16 * 16)).reshape(1, 3, 16, 16))
    assert mean.shape == (1, 4, 2, 2)
    assert mean.sum().item() == pytest.approx(-4.002480, abs=3e-5)
    assert mean.flatten()[:4].tolist() == pytest.approx([-0.497857, -0.310720, -0.411290, -0.349538], abs=2e-5)
    assert logvar.sum().item() == pytest.approx(0.826103, abs=3e-5)


def test_decoding_gives_the_golden_picture(tmp_path: Path) -> None:
    vae = ImageVae(golden(tmp_path))
    picture = vae.decode(torch.cos(0.3 * torch.arange(16)).reshape(1, 4, 2, 2))
    assert picture.shape == (1, 3, 16, 16)
    assert picture.sum().item() == pytest.approx(19.131494, abs=3e-3)
    assert picture.abs().sum().item() == pytest.approx(438.687333, abs=3e-3)
    assert picture.flatten()[:4].tolist() == pytest.approx([-0.065748, -0.427901, 0.551053, -0.325828], abs=5e-5)


def photograph(name: str) -> torch.Tensor:
    """A 256x256 crop [1, 3, h, w] of one of scikit-image's photographs."""
    return torch.from_numpy(getattr(data, name)()[20:276, 60:316].copy()).permute(2, 0, 1)[None]


def eighth(picture: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.avg_pool2d(picture.float(), 8).flatten().numpy()


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_the_tiny_vae_gives_a_photograph_back(name: str, encoders: Path) -> None:
    picture, vae = photograph(name), ImageVae(encoders / "vae")
    mean, logvar = vae.encode(picture)
    back = vae.decode(mean)
    assert np.corrcoef(eighth(picture), eighth(back))[0, 1] > 0.98
    error = (back - (picture / 127.5 - 1)).square().mean().item()
    assert 10 * math.log10(4 / error) > 18
    assert torch.all(logvar == -12)


def test_every_latent_channel_of_the_tiny_vae_is_about_normal(encoders: Path) -> None:
    vae = ImageVae(encoders / "vae")
    latents = torch.cat(
        [normalise(vae.encode(photograph(name))[0], vae.mean, vae.std) for name in ("chelsea", "coffee")]
    )
    assert latents.mean((0, 2, 3)).abs().max() < 0.7
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.5


def test_bytes_and_floats_encode_alike(encoders: Path) -> None:
    vae, picture = ImageVae(encoders / "vae"), photograph("coffee")[:, :, :32, :48]
    assert torch.equal(vae.encode(picture)[0], vae.encode(picture.float() / 127.5 - 1)[0])


def test_a_picture_off_the_stride_is_refused_with_its_shape(encoders: Path) -> None:
    with pytest.raises(VaeError, match=r"\[1, 3, 20, 16\]"):
        ImageVae(encoders / "vae").encode(torch.zeros(1, 3, 20, 16))


def test_latents_of_another_vae_are_refused(encoders: Path) -> None:
    with pytest.raises(VaeError, match=r"\[b, 16, y, x\]"):
        ImageVae(encoders / "vae").decode(torch.zeros(1, 4, 2, 2))


def test_a_folder_without_a_vae_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.txt").write_text(json.dumps({}))
    with pytest.raises(VaeError, match=str(tmp_path)):
        ImageVae(tmp_path)
