"""Pictures out of their source, and an edit's references at the sizes that the encoders see them at.

What was made of a reference is kept: its latent, and the picture that the language model sees, since that one is
encoded again with every caption.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image

from producer.api.bucket import Bucket
from producer.api.unit import Latent
from producer.cache import LatentCache, LatentKey
from producer.encode import Shown
from producer.picture import PictureError, decode
from producer.reference import SEEN_AREA, fitted
from producer.source.shard import Reader, UnreadableError
from producer.stages import Stages

# Counts up with every change of the pixels.
_REVISION = 1

_CHANGED = "picture: its bytes are not those that were curated"


@dataclass(eq=False)
class Reference:
    """One reference of a sample: its place, the sizes that the encoders see, and what is known of it already."""

    place: dict[str, Any]  # shard, member, offset, size, sha256
    kept: LatentKey  # of its latent; its bucket is the VAE's size
    seen_kept: LatentKey  # of the picture that the language model sees
    latent: Latent | None = None
    seen: np.ndarray | None = None  # uint8 [height, width, 3]

    @property
    def known(self) -> bool:
        """Whether its picture need not be decoded."""
        return self.latent is not None and self.seen is not None


class PictureReader:
    """Reads from `source`; counts what it does in `stages`."""

    def __init__(self, source: Reader, stages: Stages) -> None:
        self._source, self._stages = source, stages

    def read(self, place: Mapping[str, Any]) -> bytes | str:
        """The bytes of an encoded picture, still those that were curated, or why there are none."""
        with self._stages("read"):
            try:
                raw = self._source.read(place["shard"], place["member"], place["offset"], place["size"])
            except UnreadableError as error:
                return f"picture: {error}"
            return raw if hashlib.sha256(raw).hexdigest() == place["sha256"] else _CHANGED


class ReferenceReader:
    """The references of edits. Threads may share one."""

    def __init__(self, reader: PictureReader, cache: LatentCache, stages: Stages, encoder: str) -> None:
        """`encoder` is the fingerprint of latents."""
        self._reader, self._cache, self._stages, self._encoder = reader, cache, stages, encoder
        said = json.dumps([_REVISION, SEEN_AREA, version("pillow")])
        self._pictures = hashlib.sha256(f"pictures {said}".encode()).hexdigest()

    def look(self, rows: Sequence[Mapping[str, Any]], area: int) -> dict[str, list[Reference]]:
        """The references of each sample in `rows`, which the VAE is to see at `area` pixels, with what is kept."""
        found = {row["key"]: [self._reference(row, place, area) for place in row["references"]] for row in rows}
        every = [reference for references in found.values() for reference in references]
        latents = self._cache.get(reference.kept for reference in every)
        pictures = self._cache.pictures(reference.seen_kept for reference in every)
        for reference in every:
            reference.latent = latents.get(reference.kept)
            reference.seen = pictures.get(reference.seen_kept)
        return found

    def _reference(self, row: Mapping[str, Any], place: dict[str, Any], area: int) -> Reference:
        key, content = row["key"], f"reference {place['sha256']}"
        whole, seen = (_size(place, pixels) for pixels in (area, SEEN_AREA))
        return Reference(
            {**place, "shard": row["shard"]},
            LatentKey(key, content, whole, self._encoder),
            LatentKey(key, content, seen, self._pictures),
        )

    def show(self, reference: Reference) -> Shown:
        """The reference as the encoders take it; read and decoded where something is not known."""
        if reference.latent is not None and reference.seen is not None:
            return Shown(reference.seen, reference.latent)
        raw = self._reader.read(reference.place)
        if isinstance(raw, str):
            return self.missing(reference, raw)
        with self._stages("decode"):
            try:
                picture = decode(raw)
            except PictureError as error:
                return self.missing(reference, f"picture: {error}")
            seen = _resized(picture, reference.seen_kept.bucket)
            return Shown(seen, reference.latent or _resized(picture, reference.kept.bucket))

    def missing(self, reference: Reference, reason: str) -> Shown:
        """What stands for a reference that is not to be had: captions are encoded together, so its size counts."""
        return Shown(np.zeros((*reference.seen_kept.bucket, 3), np.uint8), reason)

    def keep(self, references: Sequence[Reference], shown: Sequence[Shown], latents: Sequence[Latent | str]) -> None:
        """Remember what was made of a sample's references."""
        for reference, (seen, made), latent in zip(references, shown, latents, strict=True):
            if isinstance(made, str) or isinstance(latent, str):
                continue
            if reference.latent is None:
                self._cache.put({reference.kept: latent})
            if reference.seen is None:
                self._cache.put_pictures({reference.seen_kept: seen})
            reference.latent, reference.seen = latent, seen


def _size(place: Mapping[str, Any], area: int) -> Bucket:
    height, width = fitted(np.asarray(place["height"]), np.asarray(place["width"]), area)
    return Bucket(int(height), int(width))


def _resized(picture: Image.Image, size: Bucket) -> np.ndarray:
    """All of `picture` at `size` (Lanczos), as the edit pipelines resize what they are given."""
    return np.asarray(picture.resize((size.width, size.height), Image.Resampling.LANCZOS))
