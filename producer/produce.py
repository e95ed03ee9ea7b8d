"""From a unit's id to the unit: the plan says which samples, the source has their bytes, the encoders do the rest."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel

from producer.api.protocol import Welcome
from producer.api.unit import Header, Latent, UnitId, pack
from producer.cache import CacheConfig, LatentCache, LatentKey
from producer.cost import CostModel
from producer.encode import Encoder, EncoderConfig, Raw
from producer.index import Index
from producer.plan import Plan, UnitPlan
from producer.recipe import RecipeConfig
from producer.rejects import Rejects
from producer.source.reader import SourceConfig, open_source
from producer.source.shard import UnreadableError

# What is needed of an index row.
_COLUMNS = ["key", "source", "shard", "member", "offset", "size", "sha256", "captions"]

_CHANGED = "picture: its bytes are not those that were curated"


class EncodeJob(BaseModel, frozen=True, strict=True, extra="forbid"):
    """All that decides which units there are and what is in them."""

    kind: Literal["encode"] = "encode"
    index: Path
    rejects: Path  # the journal of samples left out
    seed: int  # of the plan
    cost: tuple[int, int]  # producer.cost.CostModel
    source: SourceConfig
    recipe: RecipeConfig
    encoder: EncoderConfig
    cache: CacheConfig


class UnitMaker:
    """Makes the units of one plan. The same unit always comes out the same, whatever the cache holds."""

    def __init__(self, job: EncodeJob) -> None:
        """Open everything; each part raises its own error. Loading the encoders takes a while."""
        index = Index.open(job.index)
        self._table = index.table.select(_COLUMNS)
        self._plan = Plan(index.id, index.table, job.recipe, seed=job.seed, cost=CostModel(*job.cost))
        self._source = open_source(job.source)
        self._rejects = Rejects(job.rejects)
        self._cache = LatentCache(job.cache)
        self._encoder = Encoder(job.encoder)
        self._offer = Welcome(self._plan.id, self._plan.units, len(self._plan.validation), self._encoder.fingerprint)

    @property
    def offer(self) -> Welcome:
        """What the plan is."""
        return self._offer

    def __call__(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
        """The unit, and how many of its samples are missing from it, each journaled with its reason.

        SourceError if the source cannot be read now: that is no fault of the samples.
        """
        if unit.stream == "empty":
            return pack(self._header(unit, 0), [self._encoder.empty()]), 0
        plan = (
            self._plan.validation[unit.unit] if unit.stream == "validation" else self._plan.step(unit.step)[unit.unit]
        )
        rows = self._table.take(pa.array(plan.rows)).to_pylist()
        left_out = self._rejects.known(self._plan.id, unit)
        keys = {
            row["key"]: LatentKey(row["key"], row["sha256"], plan.bucket, self._encoder.fingerprint) for row in rows
        }
        cached = self._cache.get(key for name, key in keys.items() if name not in left_out)
        known = {key.sample: latent for key, latent in cached.items()}
        samples, changed = self._read(plan, rows, known, left_out)
        # Samples left out are still given, without their pictures: captions are encoded together.
        encoded, rejected = self._encoder.encode_unit(plan, samples, known)
        fresh = [(key, changed.get(key, reason)) for key, reason in rejected if key not in left_out]
        self._rejects.add(self._plan.id, unit, fresh)
        made = {keys[sample.key]: sample.latent for sample in encoded if sample.key not in known}
        self._cache.put(made)
        missing = len(rows) - len(encoded)
        return pack(self._header(unit, missing), encoded), missing

    def narrow(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
        """The same for a unit that ended earlier workers."""
        return self(unit)

    def expect(self, units: Sequence[UnitId]) -> None:
        """Begin what takes no device for `units`, and let go of others that were begun."""

    def numbers(self) -> dict[str, float]:
        """STAGE_seconds and STAGE_samples of read, decode, vae and text; wait_seconds of the device for pictures;
        cached_samples; left_out_KIND.
        """
        return {}

    def close(self) -> None:
        """Write what the cache still gathers."""
        self._cache.flush()

    def _header(self, unit: UnitId, rejected: int) -> Header:
        return Header(self._offer.plan, unit, self._offer.encoder, rejected)

    def _read(
        self, plan: UnitPlan, rows: list[dict[str, object]], known: dict[str, Latent], left_out: dict[str, str]
    ) -> tuple[list[Raw], dict[str, str]]:
        """The samples, with pictures only where they are needed, and those whose picture is another by now."""
        samples, changed = [], {}
        for row in rows:
            key = str(row["key"])
            image = b""
            if key not in known and key not in left_out:
                place = str(row["shard"]), str(row["member"]), int(str(row["offset"])), int(str(row["size"]))
                try:
                    image = self._source.read(*place)
                except UnreadableError as error:
                    changed[key] = f"picture: {error}"
                if image and hashlib.sha256(image).hexdigest() != row["sha256"]:
                    image, changed[key] = b"", _CHANGED
            caption = _caption(row["captions"], plan.split)
            samples.append(Raw(key, str(row["source"]), str(row["shard"]), image, caption, plan.split, plan.task))
        return samples, changed


def _caption(captions: object, split: str) -> str:
    """The first caption of `split`; the plan only takes rows that have one."""
    assert isinstance(captions, list)
    return next(str(caption["text"]) for caption in captions if caption["split"] == split)
