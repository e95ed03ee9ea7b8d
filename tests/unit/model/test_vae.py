"""The VAE class gives the numbers of the reference, and the tiny weights keep pictures."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageAttentionBlock
from safetensors.torch import load_file, save_file
from skimage import data

from model.latent import normalise
from model.vae import ImageVae, VaeError
from model.vae_tiles import Tiling
from tests.bench.report import peak_growth

SEEDS = range(20)
WEIGHTS = "diffusion_pytorch_model.safetensors"


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


def drawn(seed: int, folder: Path) -> tuple[Any, random.Random]:
    """A random small reference VAE, saved in `folder`, every second one in shards."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    levels = draw.randint(2, 4)
    net: Any = AutoencoderKLQwenImage(
        base_dim=draw.choice([6, 8, 12, 16]),
        z_dim=(z := draw.randint(2, 6)),
        dim_mult=[draw.randint(1, 4) for _ in range(levels)],
        num_res_blocks=draw.randint(1, 2),
        attn_scales=[2.0**-level for level in range(levels) if draw.random() < 0.3],
        temperal_downsample=[draw.random() < 0.5 for _ in range(levels - 1)],
        input_channels=draw.choice([3, 4]),
        latents_mean=[0.0] * z,
        latents_std=[1.0] * z,
    )
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.endswith("gamma"):
                value.normal_(1, 0.3)
    for block in net.encoder.down_blocks:
        if isinstance(block, QwenImageAttentionBlock):
            # The reference hands its cache to all of these, and attention there takes none.
            block.forward = lambda x, *cache, attend=block.forward: attend(x)
    net.requires_grad_(False).eval().save_pretrained(folder, max_shard_size="40KB" if seed % 2 else "1GB")
    assert (folder / WEIGHTS).is_file() == (seed % 2 == 0)
    return net, draw


def apart(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, in the largest value wanted."""
    assert got.shape == wanted.shape
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def assert_equal_to_the_reference(vae: ImageVae, net: Any, pictures: torch.Tensor) -> None:
    posterior = net.encode(pictures[:, :, None]).latent_dist
    mean, logvar = vae.encode(pictures)
    assert apart(mean, posterior.mean[:, :, 0]) < 1e-5
    assert apart(logvar, posterior.logvar[:, :, 0]) < 1e-5
    latents = torch.randn_like(mean)
    wanted = net.decode(latents[:, :, None]).sample[:, :, 0]
    # The reference does not clamp what it blends of tiles; clamping all of it would hide everything.
    assert (wanted.abs() < 1).float().mean() > 0.9
    assert apart(vae.decode(latents), wanted.clamp(-1, 1)) < 1e-5


@pytest.mark.parametrize("seed", SEEDS)
def test_a_whole_picture_equals_the_reference(seed: int, tmp_path: Path) -> None:
    net, draw = drawn(seed, tmp_path)
    vae = ImageVae(tmp_path)
    side = [8 * draw.randint(1, 9) for _ in range(2)]
    pictures = torch.rand(draw.randint(1, 2), net.config.input_channels, *side) * 2 - 1
    assert_equal_to_the_reference(vae, net, pictures)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tiled_picture_equals_the_tiled_reference(seed: int, tmp_path: Path) -> None:
    net, draw = drawn(seed, tmp_path)
    stride = 8 * draw.randint(2, 4)
    tiling = Tiling(above=(tile := stride + 8 * draw.randint(0, 2)), tile=tile, stride=stride)
    net.enable_tiling(tile, tile, stride, stride)
    # Down to a last tile of eight pixels, narrower than what is blended.
    side = [tile + 8 * draw.randint(1, 8), 8 * draw.randint(1, 14)]
    draw.shuffle(side)
    pictures = torch.rand(1, net.config.input_channels, *side) * 2 - 1
    assert_equal_to_the_reference(ImageVae(tmp_path, tiling=tiling), net, pictures)


def test_pictures_are_tiled_only_above_the_limit(tmp_path: Path) -> None:
    drawn(0, tmp_path)
    whole = ImageVae(tmp_path)
    tiled = ImageVae(tmp_path, tiling=Tiling(above=64, tile=32, stride=24))
    for side, same in ((64, True), (72, False)):
        pictures = torch.rand(1, whole.config.input_channels, side, 48)
        mean = whole.encode(pictures)[0]
        assert torch.equal(tiled.encode(pictures)[0], mean) == same
        assert torch.equal(tiled.decode(mean), whole.decode(mean)) == same


def test_in_tiles_memory_follows_the_tile_and_not_the_picture(tmp_path: Path) -> None:
    whole, tiled = ImageVae(golden(tmp_path)), ImageVae(tmp_path, tiling=Tiling(above=256, tile=128, stride=96))
    pictures, latents = torch.zeros(1, 3, 768, 512, dtype=torch.uint8), torch.zeros(1, 4, 96, 64)
    for vae in (whole, tiled):
        vae.encode(pictures[:, :, :128, :128]), vae.decode(latents[:, :, :16, :16])
    assert peak_growth(lambda: tiled.encode(pictures)) < 0.3 * peak_growth(lambda: whole.encode(pictures))
    assert peak_growth(lambda: tiled.decode(latents)) < 0.3 * peak_growth(lambda: whole.decode(latents))


def test_bfloat16_is_as_near_to_float32_as_the_reference_in_bfloat16(tmp_path: Path) -> None:
    net, _ = drawn(1, tmp_path)
    exact, half = ImageVae(tmp_path), ImageVae(tmp_path, torch.bfloat16)
    pictures = torch.rand(2, net.config.input_channels, 48, 64) * 2 - 1
    mean = exact.encode(pictures)[0]
    picture = exact.decode(mean)
    net.to(torch.bfloat16)
    other = net.encode(pictures[:, :, None].bfloat16()).latent_dist.mean[:, :, 0].float()
    assert apart(half.encode(pictures)[0], mean) < 1.5 * apart(other, mean)
    other = net.decode(mean[:, :, None].bfloat16()).sample[:, :, 0].float()
    assert apart(half.decode(mean), picture) < 1.5 * apart(other, picture)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pictures_bits_do_not_depend_on_its_place_in_the_batch(dtype: torch.dtype, tmp_path: Path) -> None:
    net, _ = drawn(3, tmp_path)
    vae = ImageVae(tmp_path, dtype)
    pictures = torch.rand(3, net.config.input_channels, 48, 88) * 2 - 1
    for first, turned in zip(vae.encode(pictures), vae.encode(pictures.roll(1, 0)), strict=True):
        assert torch.equal(first.roll(1, 0), turned)


def test_channels_that_are_all_zero_are_normed_as_the_reference_does(tmp_path: Path) -> None:
    net, _ = drawn(0, tmp_path)
    with torch.no_grad():
        net.encoder.conv_in.bias.zero_()
    net.save_pretrained(tmp_path)
    pictures = torch.zeros(1, net.config.input_channels, 16, 16)
    wanted = net.encode(pictures[:, :, None]).latent_dist.mean[:, :, 0]
    assert apart(ImageVae(tmp_path).encode(pictures)[0], wanted) < 1e-5


def test_it_loads_and_runs_without_diffusers(tmp_path: Path) -> None:
    net, _ = drawn(0, tmp_path)
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "import torch; from pathlib import Path; from model.vae import ImageVae\n"
        f"vae = ImageVae(Path(sys.argv[1])); vae.encode(torch.zeros(1, {net.config.input_channels}, 16, 16))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parents[3], timeout=120)


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


def edited(folder: Path, name: str, tensor: torch.Tensor | None) -> Path:
    """`folder` with one tensor replaced or left out."""
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(name, None)
    save_file(tensors if tensor is None else tensors | {name: tensor}, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize("name", ["decoder.conv_in.weight", "encoder.mid_block.resnets.1.norm2.gamma"])
def test_a_missing_tensor_is_named_with_its_shape(name: str, tmp_path: Path) -> None:
    shape = list(golden(tmp_path) and load_file(tmp_path / WEIGHTS)[name].shape)
    with pytest.raises(VaeError) as caught:
        ImageVae(edited(tmp_path, name, None))
    assert f"no tensor {name} of shape {shape}" in str(caught.value)


def test_a_tensor_of_another_shape_is_named_with_both(tmp_path: Path) -> None:
    name = "decoder.up_blocks.0.upsamplers.0.resample.1.weight"
    with pytest.raises(VaeError) as caught:
        ImageVae(edited(golden(tmp_path), name, torch.zeros(16, 32, 1, 3)))
    assert f"{name} has shape [16, 32, 1, 3], its config.json asks for [16, 32, 3, 3]" in str(caught.value)


def test_a_tensor_without_a_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(VaeError, match=r"tensor encoder\.extra\.weight of shape \[2\] has no place"):
        ImageVae(edited(golden(tmp_path), "encoder.extra.weight", torch.zeros(2)))


def test_a_folder_for_pictures_alone_needs_no_convolution_over_time(tmp_path: Path) -> None:
    tensors = load_file(golden(tmp_path) / WEIGHTS)
    kept = {name: tensor for name, tensor in tensors.items() if ".time_conv." not in name}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / WEIGHTS)
    assert ImageVae(tmp_path).channels == 4


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    drawn(1, tmp_path)
    shard = min(tmp_path.glob("*-00001-of-*"))
    shard.unlink()
    with pytest.raises(VaeError, match=shard.name):
        ImageVae(tmp_path)


def test_weights_that_are_not_safetensors_or_not_there_are_named(tmp_path: Path) -> None:
    (golden(tmp_path) / WEIGHTS).write_bytes(b"not weights")
    with pytest.raises(VaeError, match=f"{WEIGHTS}: does not read as safetensors"):
        ImageVae(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(VaeError, match=f"neither {WEIGHTS}"):
        ImageVae(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("_class_name", "AutoencoderKLWan", "AutoencoderKLWan"),
        ("z_dim", "four", "z_dim"),
        ("latents_mean", [0.0], "latents_mean: 1 values for the 4"),
        ("dim_mult", [], "dim_mult"),
    ],
)
def test_a_config_of_something_else_is_named_with_the_field(key: str, value: object, said: str, tmp_path: Path) -> None:
    path = golden(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(VaeError, match=said) as caught:
        ImageVae(tmp_path)
    assert str(path) in str(caught.value)


def test_a_config_that_is_no_json_object_is_named(tmp_path: Path) -> None:
    for text in ("[]", "{", "\xff"):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(VaeError, match=r"config\.json"):
            ImageVae(tmp_path)


@pytest.mark.parametrize("sizes", [(250, 192), (256, 190), (192, 256), (256, 0)])
def test_tiles_that_do_not_fit_are_refused(sizes: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(VaeError, match=f"tiles of {sizes[0]} pixels every {sizes[1]}"):
        ImageVae(golden(tmp_path), tiling=Tiling(512, *sizes))


def test_a_picture_without_the_alpha_its_vae_wants_is_refused(tmp_path: Path) -> None:
    AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1, input_channels=4).save_pretrained(tmp_path)
    vae = ImageVae(tmp_path)
    assert vae.decode(torch.zeros(1, 16, 2, 2)).shape == (1, 4, 16, 16)
    with pytest.raises(VaeError, match=r"need \[b, 4, h, w\]"):
        vae.encode(torch.zeros(1, 3, 16, 16))
