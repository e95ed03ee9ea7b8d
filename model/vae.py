"""The image autoencoder: pictures to a posterior over latents and back.

The weights and their folder are diffusers' AutoencoderKLQwenImage; a picture is a video of one frame, and the networks
are those of `model.vae_net`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.vae_net import VaeNet
from model.vae_tiles import Tiling, in_tiles

# Pixels a latent cell covers a side in the released VAE (three stages that halve).
STRIDE = 8

_CLASS = "AutoencoderKLQwenImage"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
# Range of the log-variance (diffusers vae.py, DiagonalGaussianDistribution).
_LOGVAR = (-30.0, 20.0)
# Latent statistics of the released VAE, which a config that says none has (autoencoder_kl_qwenimage.py).
_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


class VaeError(ValueError):
    """A VAE folder or a picture that the VAE cannot take."""


class VaeConfig(BaseModel, frozen=True, strict=True, extra="ignore"):
    """What a VAE folder's config.json says of a picture's networks; what it says of time and dropout is not needed."""

    base_dim: int = Field(default=96, ge=1)
    z_dim: int = Field(default=16, ge=1)
    dim_mult: tuple[int, ...] = Field(default=(1, 2, 4, 4), min_length=1)
    num_res_blocks: int = Field(default=2, ge=1)
    attn_scales: tuple[float, ...] = ()
    input_channels: int = Field(default=3, ge=1)  # 4 for the RGBA VAE of Qwen-Image-Layered
    latents_mean: tuple[float, ...] = _MEAN
    latents_std: tuple[float, ...] = _STD

    @model_validator(mode="after")
    def _statistics_fit(self) -> "VaeConfig":
        for name, values in (("latents_mean", self.latents_mean), ("latents_std", self.latents_std)):
            if len(values) != self.z_dim:
                raise ValueError(f"{name}: {len(values)} values for the {self.z_dim} latent channels of z_dim")
        return self

    @property
    def stride(self) -> int:
        """Pixels a latent cell covers a side."""
        return 2 ** (len(self.dim_mult) - 1)

    def network(self) -> VaeNet:
        return VaeNet(
            self.base_dim, self.z_dim, self.dim_mult, self.num_res_blocks, self.attn_scales, self.input_channels
        )


class ImageVae:
    """The VAE in `folder`, for pictures; computes in `dtype` on `device`, takes and gives float32 on the CPU.

    Pictures are done whole unless `tiling` says otherwise. VaeError, with the tensor's name and shapes, where the
    folder is not a whole VAE.
    """

    mean: Tensor  # [c] float32: latents_mean of its config
    std: Tensor  # [c] float32

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        tiling: Tiling | None = None,
    ) -> None:
        self.config = read_config(folder)
        self.dtype, self.device, self.tiling = dtype, torch.device(device), tiling
        if tiling is not None:
            _check_tiling(tiling, self.config.stride)
        self.channels: int = self.config.z_dim
        self.mean = torch.tensor(self.config.latents_mean, dtype=torch.float32)
        self.std = torch.tensor(self.config.latents_std, dtype=torch.float32)
        with torch.device("meta"):
            self._net = self.config.network().eval()
        _load(self._net, folder)
        self._net.to(self.device, dtype)

    @torch.inference_mode()
    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance [b, c, h / 8, w / 8] of `pictures` [b, 3, h, w], uint8 or within [-1, 1].

        An RGBA VAE takes, and gives, four channels. VaeError for any other shape.
        """
        stride, channels = self.config.stride, self.config.input_channels
        if pictures.ndim != 4 or pictures.shape[1] != channels or not _whole(pictures, stride):
            raise VaeError(
                f"pictures of shape {list(pictures.shape)}: need [b, {channels}, h, w], h and w multiples of {stride}"
            )
        both = self._run(pictures, self._encode, 1, stride)
        mean, logvar = both.chunk(2, dim=1)
        return mean.contiguous(), logvar.clamp(*_LOGVAR)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [b, 3, 8 y, 8 x] within [-1, 1] of `latents` [b, c, y, x], not normalised.

        Tiles too are clamped, after blending, where diffusers leaves them as they are.
        """
        if latents.ndim != 4 or latents.shape[1] != self.channels or not _whole(latents, 1):
            raise VaeError(f"latents of shape {list(latents.shape)}: this VAE decodes [b, {self.channels}, y, x]")
        return self._run(latents, self._decode, self.config.stride, 1).clamp_(-1, 1)

    def _run(self, x: Tensor, run: Callable[[Tensor], Tensor], pixels: int, out_pixels: int) -> Tensor:
        """`run` over `x`, whose cells are `pixels` a side, to cells of `out_pixels`; float32 on the CPU."""
        tiling = self.tiling
        if tiling is None or not tiling.wants(x.shape[2] * pixels, x.shape[3] * pixels):
            return run(x).float().cpu().contiguous()
        cut = (tiling.tile // pixels, tiling.stride // pixels)
        paste = (tiling.tile // out_pixels, tiling.stride // out_pixels)
        return in_tiles(x, run, cut, paste)

    def _encode(self, pictures: Tensor) -> Tensor:
        if pictures.dtype == torch.uint8:
            pictures = pictures.to(self.device, torch.float32) / 127.5 - 1
        return self._net.encode(pictures.to(self.device, self.dtype))

    def _decode(self, latents: Tensor) -> Tensor:
        return self._net.decode(latents.to(self.device, self.dtype))


def read_config(folder: Path) -> VaeConfig:
    """The config of the VAE in `folder`; VaeError where there is none or it is another model's."""
    path = folder / "config.json"
    if not path.is_file():
        raise VaeError(f"{folder}: no config.json, so no VAE folder")
    try:
        text = path.read_text(encoding="utf-8")
        named = json.loads(text).get("_class_name", _CLASS)
        config = VaeConfig.model_validate_json(text)
    except (AttributeError, OSError, ValidationError, ValueError) as error:
        raise VaeError(f"{path}: {error}") from error
    if named != _CLASS:
        raise VaeError(f"{path}: the folder of a {named}, this VAE is an {_CLASS}")
    return config


def _whole(x: Tensor, stride: int) -> bool:
    return all(size and size % stride == 0 for size in x.shape[2:])


def _check_tiling(tiling: Tiling, stride: int) -> None:
    if tiling.tile % stride or tiling.stride % stride or not 0 < tiling.stride <= tiling.tile:
        raise VaeError(
            f"tiling: tiles of {tiling.tile} pixels every {tiling.stride}; both must be multiples of {stride}, and "
            "the second not above the first"
        )


def _load(net: VaeNet, folder: Path) -> None:
    """Fill `net` from the folder's safetensors, in float32."""
    needed = {name: dict(part.released()) for name, part in net.parts()}
    shapes = {f"{part}.{leaf}": shape for part, leaves in needed.items() for leaf, shape in leaves.items()}
    tensors = _read(folder, shapes)
    for name, part in net.parts():
        part.take({leaf: tensors.pop(f"{name}.{leaf}") for leaf in needed[name]})


def _read(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Every tensor named in `shapes`, in float32; VaeError naming the first that is missing, odd or unknown."""
    tensors: dict[str, Tensor] = {}
    for path in _files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                # No single frame reaches the convolutions over time.
                for name in (name for name in file.keys() if ".time_conv." not in name):  # noqa: SIM118
                    _check(path, name, tuple(file.get_slice(name).get_shape()), shapes)
                    tensors[name] = file.get_tensor(name).float()
        except (OSError, SafetensorError) as error:
            raise VaeError(f"{path}: does not read as safetensors: {error}") from error
    for name, shape in shapes.items():
        if name not in tensors:
            raise VaeError(f"{folder}: no tensor {name} of shape {list(shape)}, which its config.json asks for")
    return tensors


def _check(path: Path, name: str, shape: tuple[int, ...], shapes: dict[str, tuple[int, ...]]) -> None:
    if name not in shapes:
        raise VaeError(f"{path}: tensor {name} of shape {list(shape)} has no place in the VAE of its config.json")
    if shape != shapes[name]:
        raise VaeError(f"{path}: tensor {name} has shape {list(shape)}, its config.json asks for {list(shapes[name])}")


def _files(folder: Path) -> list[Path]:
    """The folder's safetensors: one file, or those its index names."""
    index = folder / f"{_WEIGHTS}.index.json"
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if not index.is_file():
        raise VaeError(f"{folder}: neither {_WEIGHTS} nor {index.name}")
    try:
        names = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise VaeError(f"{index}: no index of safetensors: {error!r}") from error
    for name in sorted(names):
        if Path(name).name != name or not (folder / name).is_file():
            raise VaeError(f"{index}: names {name}, which is not in {folder}")
    return [folder / name for name in sorted(names)]
