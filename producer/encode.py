"""Samples to encoded units: pictures through the VAE, captions through the text encoder.

Encoding again gives the same bits. What shapes a batch follows from the unit and the config alone, never from load or
luck; what else decides the last digits (weights, libraries, device, threads) is in the encoder's fingerprint.
"""

import hashlib
import json
import math
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from model.template import EDIT_FITTED, PICTURE_TOKEN, T2I
from producer.api.bucket import Bucket
from producer.api.unit import Encoded, Latent
from producer.digest import hash_folder
from producer.encoder_config import EncoderConfig
from producer.memory import most
from producer.picture import PictureError, decode, fit
from producer.plan import UnitPlan
from producer.reference import SEEN_AREA, seen_tokens
from producer.source.references import MOST
from producer.stages import Stages

# Counts up with every change here or in model/ that changes the numbers.
REVISION = 4

_FOLDERS = ("vae", "text_encoder", "tokenizer")
_LIBRARIES = ("numpy", "pillow", "torch")
_PROCESSOR = "processor"  # of pictures, for edits
_TEXT_LIBRARIES = ("tokenizers", "transformers")

# Settings that decide a latent's bits, and those that decide no bits at all.
_LATENT_SHAPES = frozenset({"dtype", "threads", "picture_batch", "picture_pixels", "tile_above"})
_NO_SHAPES = frozenset({"root", "device", "decode_threads"})


class EncoderError(ValueError):
    """The encoders cannot be loaded."""


@dataclass(frozen=True, eq=False)
class Raw:
    """One sample as its source holds it, without its picture."""

    key: str
    source: str
    shard: str
    caption: str
    split: str
    task: str


class Shown(NamedTuple):
    """A reference of an edit as the encoders take it."""

    seen: np.ndarray  # uint8 [height, width, 3], what the language model sees; black where there is no picture
    made: Latent | np.ndarray | str  # its latent, or the picture at the VAE's size, or why there is none


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

    `latent_fingerprint` does so for latents alone, which other text settings leave as they are.

    The promise within one fingerprint: a picture's latent depends on the picture and its bucket alone, since VAE
    batches are always full (blanks fill them); a caption's embedding depends on the captions of its unit, in order,
    whether or not their pictures decode. So a rejected sample changes nothing of the others.
    """

    def __init__(self, config: EncoderConfig, stages: Stages | None = None) -> None:
        """Load the encoders; EncoderError at once where there are none. `stages` counts what is done."""
        require_folders(config.root)
        # Here, since they take seconds to import and every reader of settings imports this file.
        from model.prompt import PromptEncoder
        from model.vae import ImageVae

        self.config, self._stages = config, stages or Stages()
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
                tokens=config.text_tokens,
            )
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise EncoderError(f"encoder: {config.root} does not load as encoders: {error}") from error
        self.latent_fingerprint = _latent_fingerprint(config)
        self.fingerprint = _fingerprint(config, self.latent_fingerprint)

    def probe(self, buckets: Iterable[Bucket], reference: Bucket | None = None) -> None:
        """Encode blanks at the largest sizes that units of `buckets` can have; EncoderError says what fits instead.

        With `reference` units may be of edits, whose references the VAE sees at about that size.

        Batch sizes are no matter of luck or load: they decide bits. So a worker that cannot take them must not start.
        """
        config, found = self.config, sorted(buckets, key=lambda bucket: bucket.height * bucket.width)
        both = {max(found, key=lambda b: config.pictures(b) * b.height * b.width), found[-1]}
        for bucket in sorted(both):
            wanted, area = config.pictures(bucket), bucket.height * bucket.width
            fits = most(wanted, partial(self._blanks, bucket))
            if fits < wanted:
                raise EncoderError(
                    f"encoder.picture_pixels: {wanted} pictures of {bucket} at once do not fit in the memory of "
                    f"{config.device}; "
                    + (f"{fits} do: set it to {fits * area}" if fits else "nor does one: set encoder.tile_above")
                )
        shown = self._probe_edits(reference) if reference else 0
        longest = -(-(config.max_text_tokens + shown) // config.text_multiple) * config.text_multiple
        wanted = self._prompts.most(longest)
        fits = most(wanted, partial(self._prompts.rehearse, tokens=longest))
        if fits < wanted:
            raise EncoderError(
                f"encoder.text_tokens: {wanted} captions of {longest} tokens at once do not fit in the memory of "
                f"{config.device}; "
                + (f"{fits} do: set it to {fits * longest}" if fits else "nor does one: lower encoder.max_text_tokens")
            )

    def _probe_edits(self, reference: Bucket) -> int:
        """The most tokens that references put into a prompt, once one of them was seen."""
        from model.prompt import PromptError

        side = math.isqrt(SEEN_AREA)
        try:
            self.text([""], [[np.zeros((side, side, 3), np.uint8)] * MOST])
            if not most(1, partial(self._blanks, reference)):
                raise EncoderError(
                    f"recipe.reference_resolution: a reference of {reference} does not fit in the memory of "
                    f"{self.config.device}; lower it, or set encoder.tile_above"
                )
        except PromptError as error:
            raise EncoderError(f"recipe.tasks.ti2i: encoder.root cannot encode edits: {error}") from None
        # Sizes are rounded, most where a reference is narrow.
        return 2 * MOST * int(seen_tokens(np.asarray(side), np.asarray(side)))

    def _blanks(self, bucket: Bucket, count: int) -> None:
        self._posteriors(bucket, [np.zeros((bucket.height, bucket.width, 3), np.uint8)] * count, count)

    def latents(self, bucket: Bucket, pictures: Iterable[np.ndarray | str]) -> list[Latent | str]:
        """The posterior of each picture [height, width, 3] of the bucket's size, or why there is none.

        `pictures` may wait: a batch is encoded as soon as it is full.
        """
        results: list[Latent | str] = []
        batch: list[np.ndarray] = []
        slots: list[int] = []

        def encode() -> None:
            for slot, latent in zip(slots, self._posteriors(bucket, batch, self.config.pictures(bucket)), strict=True):
                results[slot] = latent
            batch.clear()
            slots.clear()

        for k, picture in enumerate(pictures):
            results.append(picture if isinstance(picture, str) else "")
            if not isinstance(picture, str):
                batch.append(picture)
                slots.append(k)
            if len(batch) == self.config.pictures(bucket):
                encode()
        if batch:
            encode()
        return results

    def _posteriors(self, bucket: Bucket, pictures: Sequence[np.ndarray], count: int) -> list[Latent | str]:
        """Those of `pictures` in a batch of `count`, filled up with blanks."""
        batch = np.zeros((count, 3, bucket.height, bucket.width), np.uint8)
        for slot, picture in enumerate(pictures):
            batch[slot] = picture.transpose(2, 0, 1)
        with self._stages("vae", len(pictures)), _exact(self.config.threads):
            mean, logvar = self._vae.encode(torch.from_numpy(batch))
        return [_latent(bucket, mean[slot], logvar[slot]) for slot in range(len(pictures))]

    def references(self, shown: Sequence[Shown]) -> list[Latent | str]:
        """The posterior of each of a sample's references, or why there is none. Each runs alone: sizes rarely agree."""
        return [
            self._posteriors(Bucket(*one.made.shape[:2]), [one.made], 1)[0]
            if isinstance(one.made, np.ndarray)
            else one.made
            for one in shown
        ]

    def text(
        self, captions: Sequence[str], pictures: Sequence[Sequence[np.ndarray]] | None = None
    ) -> list[np.ndarray | str]:
        """The hidden states of each caption as bfloat16 bits, uint16 [tokens, e], or why there are none.

        `pictures` [caption] are those that an edit starts from, uint8 [height, width, 3] as the language model sees
        them; either all captions have some or none has.
        """
        shown = pictures if pictures and any(map(len, pictures)) else [()] * len(captions)
        template = EDIT_FITTED if any(map(len, shown)) else T2I
        lengths = self._prompts.lengths(captions, template, [len(each) for each in shown])
        odd = [template is EDIT_FITTED and PICTURE_TOKEN in caption for caption in captions]
        fits = [k for k, length in enumerate(lengths) if length <= self.config.max_text_tokens and not odd[k]]
        with self._stages("text", len(fits)), _exact(self.config.threads):
            images = [[Image.fromarray(picture) for picture in shown[k]] for k in fits]
            hidden = self._prompts.encode([captions[k] for k in fits], template, images)
        limit = self.config.max_text_tokens
        results: list[np.ndarray | str] = [
            f"caption: has {PICTURE_TOKEN} in its words"
            if strange
            else f"caption: {length} tokens with the template's end, the limit is {limit}"
            for length, strange in zip(lengths, odd, strict=True)
        ]
        for k, states in zip(fits, hidden, strict=True):
            finite = bool(torch.isfinite(states).all())
            results[k] = states.bfloat16().view(torch.uint16).numpy() if finite else "text encoder: NaN or infinity"
        return results

    def encode_unit(
        self,
        plan: UnitPlan,
        samples: Sequence[Raw],
        pictures: Iterable[np.ndarray | str],
        known: Mapping[str, Latent] | None = None,
        references: Mapping[str, Sequence[Shown]] | None = None,
    ) -> tuple[list[Encoded], list[tuple[str, str]]]:
        """The encoded `samples` of `plan`, in their order, and (key, reason) of those that cannot be.

        `known` holds latents, by sample key, that need not be made again; `pictures` are those of the other samples, in
        order, or why they are none. They may wait: captions go first. `references` are those of edits, by sample key.
        """
        known, references = known or {}, references or {}
        shown = [references.get(sample.key, ()) for sample in samples]
        texts = self.text([sample.caption for sample in samples], [[one.seen for one in each] for each in shown])
        wanted = [sample.key for sample in samples if sample.key not in known]
        latents = dict(known) | dict(zip(wanted, self.latents(plan.bucket, pictures), strict=True))
        encoded, rejected = [], []
        for sample, text, each in zip(samples, texts, shown, strict=True):
            latent = latents[sample.key]
            if isinstance(latent, str) or isinstance(text, str):
                rejected.append((sample.key, latent if isinstance(latent, str) else str(text)))
                continue
            started = self.references(each)
            missing = [f"reference {n}: {why}" for n, why in enumerate(started, 1) if isinstance(why, str)]
            if missing:
                rejected.append((sample.key, missing[0]))
            else:
                whole = tuple(one for one in started if isinstance(one, Latent))
                encoded.append(_encoded(sample, latent, text, whole))
        return encoded, rejected

    def empty(self) -> Encoded:
        """The empty prompt, with a latent of no size: what a dropped prompt is replaced by."""
        (text,) = self.text([""])
        assert not isinstance(text, str)
        none = np.zeros((self._vae.channels, 0, 0), np.float16)
        return Encoded("", "", "", "t2i", "", "", Latent(0, 0, none, none), text)


def picture(image: bytes, bucket: Bucket) -> np.ndarray | str:
    """An encoded image at the bucket's size, uint8 [height, width, 3], or why there is none. Takes no device."""
    try:
        return fit(decode(image), bucket)
    except PictureError as error:
        return f"picture: {error}"


def _latent(bucket: Bucket, mean: torch.Tensor, logvar: torch.Tensor) -> Latent | str:
    planes = mean.half().numpy(), logvar.half().numpy()
    if not all(np.isfinite(plane).all() for plane in planes):
        return "VAE: NaN, infinity or values beyond float16"
    return Latent(bucket.height, bucket.width, *planes)


def _encoded(sample: Raw, latent: Latent, text: np.ndarray, references: tuple[Latent, ...]) -> Encoded:
    return Encoded(
        key=sample.key,
        source=sample.source,
        shard=sample.shard,
        task=sample.task,
        split=sample.split,
        caption=sample.caption,
        latent=latent,
        text=text,
        references=references,
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


def _latent_fingerprint(config: EncoderConfig) -> str:
    """A hash over all that decides the bits of latents."""
    return _hash(
        {
            "revision": REVISION,
            "vae": hash_folder(config.root / "vae"),
            "shapes": config.model_dump(mode="json", include=set(_LATENT_SHAPES)),
            "libraries": {name: version(name) for name in _LIBRARIES},
            "device": _device_kind(config.device),
        }
    )


def _fingerprint(config: EncoderConfig, latents: str) -> str:
    """A hash over all that decides the bits of what is encoded."""
    folders = [*_FOLDERS[1:], *([_PROCESSOR] if (config.root / _PROCESSOR).is_dir() else [])]
    return _hash(
        {
            "latents": latents,
            "folders": {name: hash_folder(config.root / name) for name in folders},
            "shapes": config.model_dump(mode="json", exclude=set(_NO_SHAPES | _LATENT_SHAPES)),
            "libraries": {name: version(name) for name in _TEXT_LIBRARIES},
        }
    )


def _hash(said: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _device_kind(device: str) -> list[object]:
    """What decides which kernels run, and how they cut their work."""
    if torch.device(device).type == "cuda":
        return [torch.cuda.get_device_name(device), torch.version.cuda, torch.backends.cudnn.version()]
    said = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    # The vector units, and the caches that products are blocked by; AVX512 alone may or may not come with AMX.
    kinds = {name: value for name, value in said.items() if isinstance(value, bool) or name.endswith("cache_size")}
    return [platform.machine(), torch.backends.cpu.get_cpu_capability(), kinds]
