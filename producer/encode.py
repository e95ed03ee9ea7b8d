"""Samples to encoded units: pictures through the VAE, captions through the text encoder.

Encoding again gives the same bits. What shapes a batch follows from the unit and the config alone, never from load or
luck; what else decides the last digits (weights, libraries, device, threads) is in the encoder's fingerprint.
"""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, Field, field_validator

from model.vae_tiles import Tiling
from producer.api.bucket import Bucket
from producer.api.unit import Encoded, Latent
from producer.digest import hash_folder
from producer.picture import PictureError, decode, fit
from producer.plan import UnitPlan

# Counts up with every change here or in model/ that changes the numbers.
REVISION = 3

_FOLDERS = ("vae", "text_encoder", "tokenizer")
_LIBRARIES = ("diffusers", "numpy", "pillow", "tokenizers", "torch", "transformers")


class EncoderError(ValueError):
    """The encoders cannot be loaded."""


class EncoderConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """The encoders, in the released layout, and the shapes they run at."""

    root: Path  # holds vae/, text_encoder/ and tokenizer/
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = "cpu"  # or cuda, cuda:1, ...
    threads: int = Field(default=1, ge=1)  # CPU threads of one worker
    picture_batch: int = Field(default=4, ge=1)  # pictures through the VAE at once
    tile_above: int = Field(default=0, ge=0)  # pixels a side above which it works in blended tiles; 0: never
    text_batch: int = Field(default=16, ge=1)  # captions through the text encoder at once
    text_multiple: int = Field(default=8, ge=1)  # tokens; captions are padded to a multiple of this
    max_text_tokens: int = Field(default=1024, ge=16, le=1024)  # of a caption and the template's end; more is rejected

    @field_validator("device")
    @classmethod
    def _names_a_device(cls, device: str) -> str:
        try:
            torch.device(device)
        except RuntimeError:
            raise ValueError(f"{device!r} is no device; use cpu, cuda or cuda:1") from None
        return device

    @property
    def tiling(self) -> Tiling | None:
        """How the VAE cuts large pictures, which saves memory and costs exactness where tiles meet."""
        return Tiling(self.tile_above) if self.tile_above else None


@dataclass(frozen=True, eq=False)
class Raw:
    """One sample as its source holds it. `image` may be empty where its latent is known."""

    key: str
    source: str
    shard: str
    image: bytes
    caption: str
    split: str
    task: str


def require_folders(root: Path) -> None:
    """EncoderError naming the first folder of the encoders that is not under `root`."""
    for name in _FOLDERS:
        if not (root / name / ("tokenizer_config.json" if name == "tokenizer" else "config.json")).is_file():
            raise EncoderError(
                f"encoder.root: {root / name} is missing or empty; set it to the folder of the released encoders, or "
                f"make tiny ones with: python launch/make_encoders.py {root}"
            )


class Encoder:
    """VAE, text encoder and tokenizer, loaded. `fingerprint` names the numerics: equal ones encode to equal bits.

    The promise within one fingerprint: a picture's latent depends on the picture and its bucket alone, since VAE
    batches are always full (blanks fill them); a caption's embedding depends on the captions of its unit, in order,
    whether or not their pictures decode. So a rejected sample changes nothing of the others.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Load the encoders; EncoderError at once where there are none."""
        require_folders(config.root)
        # Here, since they take seconds to import and every reader of settings imports this file.
        from model.prompt import PromptEncoder
        from model.vae import ImageVae

        self.config = config
        dtype = getattr(torch, config.dtype)
        try:
            self._vae = ImageVae(config.root / "vae", dtype, config.device, config.tiling)
            self._prompts = PromptEncoder(
                config.root,
                dtype,
                config.device,
                max_tokens=config.max_text_tokens,
                batch=config.text_batch,
                multiple=config.text_multiple,
            )
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise EncoderError(f"encoder: {config.root} does not load as encoders: {error}") from error
        self.fingerprint = _fingerprint(config)

    def latents(self, bucket: Bucket, images: Sequence[bytes]) -> list[Latent | str]:
        """The posterior of each encoded image at the bucket's size, or why there is none."""
        results: list[Latent | str] = []
        good: list[tuple[int, np.ndarray]] = []
        for k, image in enumerate(images):
            picture = _picture(image, bucket)
            results.append(picture if isinstance(picture, str) else "")
            if not isinstance(picture, str):
                good.append((k, picture))
        for start in range(0, len(good), self.config.picture_batch):
            slots = good[start : start + self.config.picture_batch]
            batch = np.zeros((self.config.picture_batch, 3, bucket.height, bucket.width), np.uint8)
            for slot, (_, picture) in enumerate(slots):
                batch[slot] = picture.transpose(2, 0, 1)
            with _exact(self.config.threads):
                mean, logvar = self._vae.encode(torch.from_numpy(batch))
            for slot, (k, _) in enumerate(slots):
                results[k] = _latent(bucket, mean[slot], logvar[slot])
        return results

    def text(self, captions: Sequence[str]) -> list[np.ndarray | str]:
        """The hidden states of each caption as bfloat16 bits, uint16 [tokens, e], or why there are none."""
        lengths = self._prompts.lengths(captions)
        fits = [k for k, length in enumerate(lengths) if length <= self.config.max_text_tokens]
        with _exact(self.config.threads):
            hidden = self._prompts.encode([captions[k] for k in fits])
        limit = self.config.max_text_tokens
        results: list[np.ndarray | str] = [
            f"caption too long: {length} tokens with the template's end, the limit is {limit}" for length in lengths
        ]
        for k, states in zip(fits, hidden, strict=True):
            finite = bool(torch.isfinite(states).all())
            results[k] = states.bfloat16().view(torch.uint16).numpy() if finite else "text encoder gave NaN or infinity"
        return results

    def encode_unit(
        self, plan: UnitPlan, samples: Sequence[Raw], known: Mapping[str, Latent] | None = None
    ) -> tuple[list[Encoded], list[tuple[str, str]]]:
        """The encoded `samples` of `plan`, in their order, and (key, reason) of those that cannot be.

        `known` holds latents, by sample key, that need not be made again. The unit of the stream "empty" takes no
        samples and gives the empty prompt.
        """
        if plan.unit.stream == "empty":
            return [self.empty()], []
        known = known or {}
        wanted = [sample for sample in samples if sample.key not in known]
        made = self.latents(plan.bucket, [sample.image for sample in wanted])
        latents = dict(known) | {sample.key: latent for sample, latent in zip(wanted, made, strict=True)}
        texts = self.text([sample.caption for sample in samples])
        encoded, rejected = [], []
        for sample, text in zip(samples, texts, strict=True):
            latent = latents[sample.key]
            if isinstance(latent, str) or isinstance(text, str):
                rejected.append((sample.key, latent if isinstance(latent, str) else str(text)))
            else:
                encoded.append(_encoded(sample, latent, text))
        return encoded, rejected

    def empty(self) -> Encoded:
        """The empty prompt, with a latent of no size: what a dropped prompt is replaced by."""
        (text,) = self.text([""])
        assert not isinstance(text, str)
        none = np.zeros((self._vae.channels, 0, 0), np.float16)
        return Encoded("", "", "", "t2i", "", "", Latent(0, 0, none, none), text)


def _picture(image: bytes, bucket: Bucket) -> np.ndarray | str:
    try:
        return fit(decode(image), bucket)
    except PictureError as error:
        return f"picture: {error}"


def _latent(bucket: Bucket, mean: torch.Tensor, logvar: torch.Tensor) -> Latent | str:
    planes = mean.half().numpy(), logvar.half().numpy()
    if not all(np.isfinite(plane).all() for plane in planes):
        return "VAE gave NaN, infinity or values beyond float16"
    return Latent(bucket.height, bucket.width, *planes)


def _encoded(sample: Raw, latent: Latent, text: np.ndarray) -> Encoded:
    return Encoded(
        key=sample.key,
        source=sample.source,
        shard=sample.shard,
        task=sample.task,
        split=sample.split,
        caption=sample.caption,
        latent=latent,
        text=text,
    )


@contextmanager
def _exact(threads: int) -> Iterator[None]:
    """Compute with `threads` CPU threads and, on CUDA, with kernels chosen without timing them."""
    before = torch.get_num_threads()
    # The number belongs to the calling thread: set at each use, not once.
    torch.set_num_threads(threads)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(before)


def _fingerprint(config: EncoderConfig) -> str:
    """A hash over all that decides the bits of what is encoded."""
    said = {
        "revision": REVISION,
        "folders": {name: hash_folder(config.root / name) for name in _FOLDERS},
        "shapes": config.model_dump(mode="json", exclude={"root", "device"}),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "device": _device_kind(config.device),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _device_kind(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
