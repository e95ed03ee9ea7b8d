"""Units whose keys, captions' lengths, latents on disk and rejects are real, and whose encoding is arithmetic.

As producer.produce.UnitMaker with the encoders left out: real index, plan, cache and journal of rejects.
"""

import hashlib
import json
import os
import signal
import time
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from producer.api.bucket import Bucket
from producer.api.protocol import Welcome
from producer.api.unit import Encoded, Header, Latent, UnitId, pack, unpack
from producer.cache import CacheConfig, LatentCache, LatentKey
from producer.cost import CostModel
from producer.index import Index, write_generation
from producer.journal import Line
from producer.plan import Plan, Terms, UnitPlan
from producer.recipe import RecipeConfig, Threshold
from producer.rejects import KILLED, Rejects
from tests.unit.producer.rows import table

# Changes with what encoding gives.
ENCODER = "arithmetic-1"
CHANNELS, WIDTH = 4, 8
COST = CostModel(40_768_634_880, 2_211_840)  # of the released model (model/count.py)
SPLITS = ("raw", "fused")
HELD_OUT = 6
SEED = 11
SPARE_BYTES = 1 << 18
_COLUMNS = ["key", "source", "shard", "sha256", "captions"]


class Job(BaseModel, frozen=True, strict=True, extra="forbid"):
    """What units there are, and where their makers keep things."""

    index: Path
    disk: Path  # of the cache and the journal
    units: int = 4  # a step
    samples: int = 4  # a unit
    resolutions: tuple[int, ...] = (64,)
    aspects: tuple[str, ...] = ("1:1",)
    bad: int = 20  # one sample in so many cannot be encoded; 0: all can
    deadly: int = 0  # one sample in so many ends the process that encodes it; 0: none does
    seconds: float = 0.0  # that making a unit takes
    cache_bytes: int = 1 << 20  # less than all latents take, so that some are made again
    flush_every: int = 8  # units; the cache itself gathers for longer than these processes live

    @cached_property
    def recipe(self) -> RecipeConfig:
        return RecipeConfig(
            resolutions=self.resolutions,
            aspects=self.aspects,
            units=self.units,
            samples=self.samples,
            splits=dict.fromkeys(SPLITS, 0.5),
            validation_samples=HELD_OUT,
            min_fill=0.1,
            max_imbalance=10.0,
        )

    def changed(self, number: int) -> RecipeConfig:
        """The recipe that the `number`th switch brings."""
        weights = dict(zip(SPLITS, (0.3, 0.7) if number % 2 else (0.6, 0.4), strict=True))
        strict = {"aesthetic": Threshold(min=1.0 + number % 4)}
        return self.recipe.model_copy(update={"splits": weights, "thresholds": strict})

    @property
    def cache(self) -> Path:
        return self.disk / "cache"

    @property
    def rejects(self) -> Path:
        return self.disk / "rejects.jsonl"

    @property
    def journal(self) -> Path:
        """The recipes'."""
        return self.index.with_name("fleet") / "journal.jsonl"


def write_index(path: Path, rows: int, *, square: bool = True) -> None:
    """An index of `rows` samples to train on, in one shape or in many, and those held out."""
    count = rows + HELD_OUT
    shape = {"width": [256] * count, "height": [256] * count} if square else {}
    write_generation(path, table(count, splits=SPLITS, **shape), tokenizer="t", operators={"aesthetic": {}})


class Arithmetic:
    """An encoder: each number follows from the sample's name."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def verdict(self, key: str) -> str:
        """Why a sample cannot be encoded, "" if it can."""
        if self._job.bad and zlib.crc32(key.encode()) % self._job.bad == 0:
            return f"picture: byte {zlib.crc32(key.encode()) % 977} is not what it says"
        return ""

    def is_deadly(self, key: str) -> bool:
        return bool(self._job.deadly) and zlib.crc32(f"deadly {key}".encode()) % self._job.deadly == 0

    def latent(self, key: str, bucket: Bucket) -> Latent:
        shape = (CHANNELS, bucket.height // 8, bucket.width // 8)
        draw = np.random.default_rng(zlib.crc32(f"{key} {bucket}".encode()))
        return Latent(bucket.height, bucket.width, *(draw.standard_normal(shape).astype(np.float16) for _ in "ml"))

    def text(self, key: str, split: str, tokens: int) -> np.ndarray:
        draw = np.random.default_rng(zlib.crc32(f"{key} {split}".encode()))
        return draw.integers(0, 1 << 16, (tokens, WIDTH), np.uint16)


class ChaosMaker:
    """A maker as producer.worker asks for one. `mortal`: deadly samples end the process, else they are left out."""

    def __init__(self, job: Job, *, mortal: bool = False) -> None:
        self.job, self.encoder, self._mortal = job, Arithmetic(job), mortal
        index = Index.open(job.index)
        self._tables = {}
        self.plan = Plan(index.id, index.table, job.recipe, seed=SEED, cost=COST)
        self._tables[self.plan.id] = index.table.select(_COLUMNS)
        self.rejects = Rejects(job.rejects)
        self.cache = LatentCache(CacheConfig(path=job.cache, limit_bytes=job.cache_bytes, spare_bytes=SPARE_BYTES))
        terms = Terms(recipe=job.recipe, index=job.index, generation=index.path.name, index_id=index.id)
        held_out = len(self.plan.validation)
        self.offer = Welcome(self.plan.id, self.plan.units, held_out, ENCODER, terms=json.dumps(terms.body()))
        self._made = 0

    def __call__(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
        """The unit, and how many samples are missing, each journaled with its reason."""
        time.sleep(self.job.seconds)
        if unit.stream == "empty":
            none = np.zeros((CHANNELS, 0, 0), np.float16)
            latent, text = Latent(0, 0, none, none), self.encoder.text("", "", 3)
            header = Header(self.offer.plan, unit, ENCODER)
            return pack(header, [Encoded("", "", "", "t2i", "", "", latent, text)]), 0
        plan = self.planned(unit)
        rows = self._tables[plan.plan].take(pa.array(plan.rows)).to_pylist()
        left_out = self.left_out(plan, [row["key"] for row in rows])
        keys = {row["key"]: LatentKey(row["key"], row["sha256"], plan.bucket, ENCODER) for row in rows}
        known = {key.sample: latent for key, latent in self.cache.get(keys.values()).items()}
        made = {key: self._latent(key, plan.bucket) for key in keys if key not in known and key not in left_out}
        self.cache.put({keys[key]: latent for key, latent in made.items()})
        self._made += 1
        if self._made % self.job.flush_every == 0:
            self.cache.flush()
        latents = known | made
        good = [self._encoded(row, plan, latents[row["key"]]) for row in rows if row["key"] not in left_out]
        missing = len(rows) - len(good)
        return pack(Header(plan.plan, unit, ENCODER, missing), good), missing

    def narrow(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
        """The same for a unit that ended earlier workers, one sample at a time: see UnitMaker.narrow."""
        if unit.stream == "empty":
            return self(unit)
        plan = self.planned(unit)
        left_out = self.left_out(plan, self.keys(unit))
        with self.rejects.attempt(plan.plan, unit) as attempt:
            for key in self.keys(unit):
                if key in left_out:
                    continue
                if attempt.deaths(key, "picture") >= 2:
                    self.rejects.add(plan.plan, unit, [(key, f"{KILLED}: by its picture")])
                    continue
                attempt.begin(key, "picture")
                self._latent(key, plan.bucket)
            attempt.begin("", "unit")
            return self(unit)

    def left_out(self, plan: UnitPlan, keys: list[str]) -> dict[str, str]:
        """The samples that a unit leaves out; those found only now are journaled first."""
        journaled = self.rejects.known(plan.plan, plan.unit)
        killers = self.rejects.killers(plan.plan)
        found = {key: reason for key in keys if (reason := killers.get(key, "") or self.encoder.verdict(key))}
        if not self._mortal:
            found |= {key: KILLED for key in keys if self.encoder.is_deadly(key)}
        fresh = {key: reason for key, reason in found.items() if key not in journaled}
        self.rejects.add(plan.plan, plan.unit, list(fresh.items()))
        return journaled | fresh

    def _latent(self, key: str, bucket: Bucket) -> Latent:
        if self.encoder.is_deadly(key):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.encoder.latent(key, bucket)

    def expect(self, units: Sequence[UnitId]) -> None:
        """Nothing is begun ahead."""

    def adopt(self, line: Line) -> None:
        """Another recipe from `line.from_step` on."""
        terms = Terms.of(line.body)
        index = Index.open(terms.index, terms.generation)
        self._tables[line.id] = index.table.select(_COLUMNS)
        self.plan.extend(line.id, line.from_step, terms, index.id, index.table)

    def numbers(self) -> dict[str, float]:
        """Counters for people."""
        return {f"cache_{name}": float(count) for name, count in self.cache.counts.items()}

    def close(self) -> None:
        self.cache.flush()

    def planned(self, unit: UnitId) -> UnitPlan:
        """What the plan has for `unit`."""
        return self.plan.validation[unit.unit] if unit.stream == "validation" else self.plan.step(unit.step)[unit.unit]

    def keys(self, unit: UnitId) -> list[str]:
        """The samples that the plan has for `unit`, bad ones too."""
        plan = self.planned(unit)
        return self._tables[plan.plan]["key"].take(pa.array(plan.rows)).to_pylist()

    def names(self, rows: np.ndarray) -> list[str]:
        """The samples in `rows` of the first generation."""
        return self._tables[self.plan.id]["key"].take(pa.array(rows)).to_pylist()

    def _encoded(self, row: dict[str, object], plan: UnitPlan, latent: Latent) -> Encoded:
        key, captions = str(row["key"]), row["captions"]
        assert isinstance(captions, list)
        caption = next(caption for caption in captions if caption["split"] == plan.split)
        return Encoded(
            key=key,
            source=str(row["source"]),
            shard=str(row["shard"]),
            task=plan.task,
            split=plan.split,
            caption=str(caption["text"]),
            latent=latent,
            text=self.encoder.text(key, plan.split, caption["tokens"]),
        )


def told(batch: pa.RecordBatch) -> dict[str, object]:
    """What a ledger keeps of a unit: its sample keys, a checksum of each sample's tensors, how many are missing."""
    header, samples = unpack(batch)
    return {
        "keys": [sample.key for sample in samples],
        "tensors": [_digest(sample) for sample in samples],
        "missing": header.rejected,
        "plan": header.plan,
    }


def _digest(sample: Encoded) -> str:
    found = hashlib.sha256(f"{sample.split} {sample.caption}".encode())
    for values in (sample.latent.mean, sample.latent.logvar, sample.text):
        found.update(f"{values.shape}".encode() + values.tobytes())
    return found.hexdigest()[:16]
