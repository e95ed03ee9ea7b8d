"""Latents kept on disk between epochs and runs, by bucket; also the pictures that edit samples refer to.

    <path>/<encoder fingerprint>/<height>x<width>/<file>.arrow

Any number of processes read and write at once. What is damaged counts as missing, is set aside as *.damaged and made
again. A full disk costs only the keeping: the cache waits, longer each time, says so once, and goes on by itself.
docs/cache.md has the sizes.
"""

import hashlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from producer.api.bucket import Bucket
from producer.api.unit import Latent
from producer.cache_file import Layout, Record
from producer.cache_folder import Folder, Mapped
from producer.cache_space import FullError, Space, fill

__all__ = ["CacheConfig", "LatentCache", "LatentKey", "fill"]

log = logging.getLogger(__name__)

_LATENT = ("mean", "logvar")  # float16 [channels, height / 8, width / 8] each
_PICTURE = ("pixels",)  # uint8 [height, width, 3]
_GATHER_BYTES = 64 << 20  # of all folders; the fullest is written when there is more
_GATHER_S = 10.0  # the longest that records are gathered before they are written
_PAUSE_S = (1.0, 60.0)  # after a write that failed: the first one, and the longest


class CacheConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """Where latents are kept, and how many."""

    path: Path
    limit_bytes: int = Field(default=50_000_000_000, ge=0)  # on disk, of all encoders
    spare_bytes: int = Field(default=1_000_000_000, ge=0)  # of its disk that are left free for others


class LatentKey(NamedTuple):
    """A sample as one encoder sees it; `content` is its image's hash, so that a replaced image is another sample."""

    sample: str
    content: str
    bucket: Bucket
    encoder: str


class LatentCache:
    """Thread-safe; a process has one. `counts` says what happened to latents, pictures and files."""

    def __init__(self, config: CacheConfig) -> None:
        self.config = config
        names = ("hits", "misses", "written", "damaged", "unwritten", "evicted", "merged")
        self.counts = dict.fromkeys(names, 0)
        self._writer = uuid.uuid4().hex[:12]
        self._lock = threading.Lock()
        self._folders: dict[tuple[str, Bucket, tuple[str, ...]], Folder] = {}
        self._mapped = Mapped()
        self._space = Space(config.path, config.limit_bytes, config.spare_bytes, self.counts)
        self._pause, self._again = 0.0, 0.0  # seconds after the last write that failed, and until when
        self._why = ""
        self._refused = 0  # records not kept since the disk was full
        self._space.clean()

    @property
    def full(self) -> str:
        """Why nothing is kept at present, for people; empty while all is well."""
        return self._why if self._pause else ""

    def get(self, keys: Iterable[LatentKey]) -> dict[LatentKey, Latent]:
        """Those of `keys` that are here, every one with its checksum verified."""
        return {key: _latent(key.bucket, *parts) for key, parts in self._get(keys, _LATENT).items()}

    def put(self, latents: Mapping[LatentKey, Latent]) -> None:
        """Keep `latents`; they reach the disk together, with a later `put` or with `flush`."""
        self._put({key: (_raw(latent.mean), _raw(latent.logvar)) for key, latent in latents.items()}, _LATENT)

    def pictures(self, keys: Iterable[LatentKey]) -> dict[LatentKey, np.ndarray]:
        """As `get`: uint8 [height, width, 3] at the bucket's size; `encoder` says what the picture was made for."""
        found = self._get(keys, _PICTURE)
        return {key: np.frombuffer(raw, np.uint8).reshape(*key.bucket, 3) for key, (raw,) in found.items()}

    def put_pictures(self, pictures: Mapping[LatentKey, np.ndarray]) -> None:
        """As `put`."""
        for key, picture in pictures.items():
            assert picture.shape == (*key.bucket, 3) and picture.dtype == np.uint8, (key, picture.shape)
        self._put({key: (picture.tobytes(),) for key, picture in pictures.items()}, _PICTURE)

    def flush(self) -> None:
        """Write all that was gathered."""
        with self._lock:
            for folder in self._folders.values():
                self._write(folder)

    def _get(self, keys: Iterable[LatentKey], parts: tuple[str, ...]) -> dict[LatentKey, tuple[Any, ...]]:
        found: dict[LatentKey, tuple[Any, ...]] = {}
        with self._lock:
            folders: dict[Folder, dict[bytes, LatentKey]] = {}
            for key in keys:
                folders.setdefault(self._folder(key, parts), {})[_id(key)] = key
            for folder, wanted in folders.items():
                found |= {wanted[id]: values for id, values in folder.get(wanted).items()}
            self.counts["hits"] += len(found)
            self.counts["misses"] += sum(map(len, folders.values())) - len(found)
        return found

    def _put(self, records: Mapping[LatentKey, tuple[bytes, ...]], parts: tuple[str, ...]) -> None:
        with self._lock:
            for key, values in records.items():
                self._folder(key, parts).put(Record(_id(key), values))
            now = time.monotonic()
            if now >= self._again:
                due = [
                    folder for folder in self._folders.values() if folder.gathered and now - folder.since > _GATHER_S
                ]
                for folder in due or self._fullest():
                    self._write(folder)
            for folder in self._fullest():
                # It could not be written.
                count = folder.drop()
                self._refused += count
                self.counts["unwritten"] += count

    def _fullest(self) -> list[Folder]:
        """The folder with the most to write, if there is too much in all."""
        folders = list(self._folders.values())
        if sum(folder.gathered_bytes for folder in folders) <= _GATHER_BYTES:
            return []
        return [max(folders, key=lambda folder: folder.gathered_bytes)]

    def _write(self, folder: Folder) -> None:
        """Write what `folder` gathered; if the disk does not take it, it stays gathered while there is room for it."""
        if not folder.gathered:
            return
        try:
            folder.write(self._space.room)
        except OSError as error:
            first, longest = _PAUSE_S
            if not self._pause:
                self._why = str(error.strerror) if isinstance(error, FullError) else os.strerror(error.errno or 0)
                log.warning("cache: %s; what is made is not kept until there is room", error)
            self._pause = min(longest, 2 * self._pause or first)
            self._again = time.monotonic() + self._pause
            return
        if self._pause:
            log.warning("cache: there is room again; %d records were not kept", self._refused)
            self._pause, self._again, self._refused = 0.0, 0.0, 0

    def _folder(self, key: LatentKey, parts: tuple[str, ...]) -> Folder:
        at = (key.encoder, key.bucket, parts)
        if at not in self._folders:
            path = self.config.path / key.encoder / str(key.bucket)
            layout = Layout(f"{' '.join(parts)} {key.encoder} {key.bucket}", parts)
            self._space.serve(key.encoder)
            self._folders[at] = Folder(path, layout, self._writer, self._mapped, self.counts)
        return self._folders[at]


def _id(key: LatentKey) -> bytes:
    """16 bytes for what tells a sample from others; bucket and encoder are the folder's."""
    return hashlib.blake2b(f"{len(key.sample)} {key.sample}{key.content}".encode(), digest_size=16).digest()


def _raw(plane: np.ndarray) -> bytes:
    return np.ascontiguousarray(plane, "<f2").tobytes()


def _latent(bucket: Bucket, *planes: bytes) -> Latent:
    shape = (-1, bucket.height // 8, bucket.width // 8)
    mean, logvar = (np.frombuffer(raw, "<f2").reshape(shape) for raw in planes)
    return Latent(bucket.height, bucket.width, mean, logvar)
