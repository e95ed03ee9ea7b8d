"""From a unit's id to the unit: the plan says which samples, the source has their bytes, the encoders do the rest.

Three things go on at once: a bounded pool of threads reads, decodes and resizes for the next units, the device's own
thread encodes, and the caller packs and keeps what was encoded. Threads decide when a picture is there, never what is
made of it.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel

from producer.api.bucket import Bucket
from producer.api.protocol import Welcome
from producer.api.unit import Encoded, Header, Latent, UnitId, pack
from producer.balance import predicted
from producer.cache import CacheConfig, LatentCache, LatentKey
from producer.cost import CostModel
from producer.encode import Encoder, Raw, Shown, picture
from producer.encoder_config import EncoderConfig
from producer.index import Index
from producer.journal import Line
from producer.plan import Plan, Terms, UnitPlan
from producer.recipe import T2I, RecipeConfig
from producer.reference_reader import PictureReader, Reference, ReferenceReader
from producer.rejects import KILLED, Attempt, Rejects
from producer.source.reader import SourceConfig, open_source
from producer.stages import Stages
from producer.worker import MakerBrokenError

# What is needed of an index row.
_COLUMNS = ["key", "source", "shard", "member", "offset", "size", "sha256", "captions", "references"]

# What is tried of a sample of a unit that ended its workers, and how often a try must not have come back.
_PARTS = ("picture", "caption")
_DEATHS = 2
_DEATHS_TOGETHER = 3  # the rest of its unit is at stake
_KILLED = {part: f"{KILLED}: by its {part}" for part in _PARTS}
_TOGETHER = f"{KILLED}: its unit did, and no sample of it alone"
_SILENCED = (_KILLED["caption"], _TOGETHER)


class EncodeJob(BaseModel, frozen=True, strict=True, extra="forbid"):
    """All that decides which units there are and what is in them."""

    kind: Literal["encode"] = "encode"
    index: Path
    generation: str = "latest"  # of the index, that the plan begins with
    rejects: Path  # the journal of samples left out
    seed: int  # of the plan
    cost: tuple[int, int]  # producer.cost.CostModel
    source: SourceConfig
    recipe: RecipeConfig
    encoder: EncoderConfig
    cache: CacheConfig


@dataclass
class _Begun:
    """A unit before the device has to do with it."""

    plan: UnitPlan
    rows: list[dict[str, Any]]
    keys: dict[str, LatentKey]
    left_out: dict[str, str]  # by sample, as of its beginning
    known: dict[str, Latent]
    references: dict[str, list[Reference]]  # by sample, of edits
    pictures: dict[str, "Future[np.ndarray | str]"] = field(default_factory=dict)
    shown: dict[str, list["Future[Shown]"]] = field(default_factory=dict)  # as `references`

    def cancel(self) -> None:
        futures: Iterator[Future[Any]] = chain(self.pictures.values(), *self.shown.values())
        for future in futures:
            future.cancel()


@dataclass
class _Made:
    """A unit after the device, with reasons that are not in the journal yet."""

    begun: _Begun
    encoded: list[Encoded]
    reasons: dict[str, str]
    cached: int
    shown: dict[str, list[Shown]]


@dataclass
class _Job:
    """A unit under way."""

    begun: "Future[_Begun]"
    made: "Future[_Made]"

    def cancel(self) -> None:
        self.made.cancel()
        if not self.begun.cancel():
            self.begun.add_done_callback(_let_go)


class UnitMaker:
    """Makes the units of one plan. The same unit always comes out the same, whatever the cache holds."""

    def __init__(self, job: EncodeJob) -> None:
        """Open everything; each part raises its own error. Loading the encoders takes a while."""
        index = Index.open(job.index, job.generation)
        job.source.require(index.table["source"].unique().to_pylist())
        # By plan: the rows that its row numbers are of. Another recipe may be over another generation.
        self._tables: dict[str, pa.Table] = {}
        self._plan = Plan(index.id, index.table, job.recipe, seed=job.seed, cost=CostModel(*job.cost))
        self._settings, self._source = job.source, open_source(job.source)
        self._rejects = Rejects(job.rejects)
        self._cache = LatentCache(job.cache)
        self._stages = Stages()
        self._encoder = Encoder(job.encoder, self._stages)
        self._reader = PictureReader(self._source, self._stages)
        latents = self._encoder.latent_fingerprint
        self._references = ReferenceReader(self._reader, self._cache, self._stages, latents)
        self._buckets = job.recipe.all_buckets
        self._encoder.probe(self._buckets, job.recipe.reference)
        self._stages.clear()
        self._tables[self._plan.id] = index.table.select(_COLUMNS)
        terms = Terms(recipe=job.recipe, index=index.path.parent, generation=index.path.name, index_id=index.id)
        plan, said, encoder = self._plan, json.dumps(terms.body()), self._encoder.fingerprint
        held_out, balance = len(plan.validation), predicted(plan)
        self._offer = Welcome(plan.id, plan.units, held_out, encoder, terms=said, balance=balance)
        self._lock = threading.Lock()
        self._threads = job.encoder.decode_threads
        self._start()
        self._ahead: dict[UnitId, _Job] = {}

    @property
    def offer(self) -> Welcome:
        """What the plan is."""
        return self._offer

    def __call__(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
        """The unit, and how many of its samples are missing from it, each journaled with its reason.

        SourceError if the source cannot be read now: that is no fault of the samples.
        """
        if unit.stream == "empty":
            empty = self._device.submit(self._encoder.empty).result()
            return pack(self._header(self._offer.plan, unit, 0), [empty]), 0
        with self._lock:
            job = self._ahead.pop(unit, None) or self._submit(unit)
        try:
            return self._finish(job.made.result())
        finally:
            job.cancel()

    def narrow(self, unit: UnitId) -> tuple[pa.RecordBatch, int]:
        """The same for a unit that ended earlier workers, one sample at a time and nothing beside it.

        The journal says what is tried before it is. What came back is not tried again, and what did not come back from
        two tries is left out.
        """
        if unit.stream == "empty":
            return self(unit)
        with self._lock:
            self._ahead.clear()
            ending = self._pool, self._device
            self._start()
        for threads in ending:
            threads.shutdown(wait=False, cancel_futures=True)
        for threads in ending:
            threads.shutdown(wait=True)
        begun = self._look(unit)
        with self._rejects.attempt(begun.plan.plan, unit) as attempt:
            for row in begun.rows:
                self._try(begun, row, attempt)
            if attempt.deaths("", "unit") >= _DEATHS_TOGETHER:
                self._leave_out(begun, [str(row["key"]) for row in begun.rows], _TOGETHER)
            attempt.begin("", "unit")
            self._decode(begun)
            return self._finish(self._encode(begun))

    def expect(self, units: Sequence[UnitId]) -> None:
        """Begin what takes no device for `units`, and let go of others that were begun."""
        with self._lock:
            for unit in self._ahead.keys() - set(units):
                self._ahead.pop(unit).cancel()
            for unit in units:
                if unit.stream != "empty" and unit not in self._ahead:
                    self._ahead[unit] = self._submit(unit)

    def adopt(self, line: Line) -> None:
        """Compile another entry of the recipe journal.

        PlanError, RecipeError, IndexFormatError, SourceError or EncoderError says why it does not fit.
        """
        terms = Terms.of(line.body)
        index = Index.open(terms.index, terms.generation)
        self._settings.require(index.table["source"].unique().to_pylist())
        buckets = terms.recipe.all_buckets
        if buckets - self._buckets or terms.recipe.reference:
            # What does not fit must not be begun; units of the steps before still are.
            self._device.submit(self._encoder.probe, buckets, terms.recipe.reference).result()
            self._buckets |= buckets
        self._tables[line.id] = index.table.select(_COLUMNS)
        self._plan.extend(line.id, line.from_step, terms, index.id, index.table)
        with self._lock:
            for unit in [unit for unit in self._ahead if unit.stream == "train" and unit.step >= line.from_step]:
                self._ahead.pop(unit).cancel()

    def numbers(self) -> dict[str, float]:
        """STAGE_seconds and STAGE_samples of read, decode, vae, text and pack; wait_seconds of the device for pictures;
        cached_samples; left_out_KIND; and what the cache counts.
        """
        return self._stages.counts() | {f"cache_{name}": count for name, count in self._cache.counts.items()}

    def close(self) -> None:
        """Begin nothing more, and write what the cache still gathers."""
        for threads in (self._pool, self._device):
            threads.shutdown(wait=False, cancel_futures=True)
        self._cache.flush()

    def _header(self, plan: str, unit: UnitId, rejected: int) -> Header:
        return Header(plan, unit, self._offer.encoder, rejected)

    def _start(self) -> None:
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")

    def _submit(self, unit: UnitId) -> _Job:
        begun = self._pool.submit(self._begin, unit)
        return _Job(begun, self._device.submit(self._encode_begun, begun))

    # Before the device.

    def _look(self, unit: UnitId) -> _Begun:
        """What `unit` consists of, and what is known of that already."""
        of_step = self._plan.validation if unit.stream == "validation" else self._plan.step(unit.step)
        plan = of_step[unit.unit]
        rows = self._tables[plan.plan].take(pa.array(plan.rows)).to_pylist()
        left_out = self._rejects.known(plan.plan, unit)
        encoder = self._encoder.latent_fingerprint
        keys = {row["key"]: LatentKey(row["key"], row["sha256"], plan.bucket, encoder) for row in rows}
        cached = self._cache.get(key for name, key in keys.items() if name not in left_out)
        known = {key.sample: latent for key, latent in cached.items()}
        part = self._plan.parts[0] if unit.stream == "validation" else self._plan.part(unit.step)
        references = {} if plan.task == T2I else self._references.look(rows, part.recipe.reference_resolution**2)
        for key, reason in self._rejects.killers(plan.plan).items():
            # A picture that need not be decoded again is no danger.
            safe = key in known and all(reference.known for reference in references.get(key, ()))
            if key in keys and not (reason == _KILLED["picture"] and safe):
                left_out.setdefault(key, reason)
        return _Begun(plan, rows, keys, left_out, known, references)

    def _begin(self, unit: UnitId) -> _Begun:
        """Look at `unit`, and begin with the pictures that it needs."""
        begun = self._look(unit)
        self._decode(begun)
        return begun

    def _decode(self, begun: _Begun) -> None:
        for row in begun.rows:
            key = row["key"]
            if key not in begun.known and key not in begun.left_out and key not in begun.pictures:
                begun.pictures[key] = self._pool.submit(self._picture, row, begun.plan.bucket)
            if key in begun.references and key not in begun.left_out:
                begun.shown[key] = [self._pool.submit(self._references.show, one) for one in begun.references[key]]

    def _picture(self, row: dict[str, Any], bucket: Bucket) -> np.ndarray | str:
        image = self._reader.read(row)
        if isinstance(image, str):
            return image
        with self._stages("decode"):
            return picture(image, bucket)

    # The device.

    def _encode_begun(self, begun: "Future[_Begun]") -> _Made:
        with self._stages("wait", 0):
            found = begun.result()
        return self._encode(found)

    def _encode(self, begun: _Begun) -> _Made:
        plan = begun.plan
        # Others may have left out more since this was begun.
        journaled = self._rejects.known(plan.plan, plan.unit)
        left_out = begun.left_out | journaled
        known = {key: latent for key, latent in begun.known.items() if key not in left_out}
        # Samples left out are still given, without their pictures: captions are encoded together.
        samples = [_raw(row, plan, left_out) for row in begun.rows]
        pictures = self._pictures(begun, [sample.key for sample in samples if sample.key not in known], left_out)
        shown = {key: self._shown(begun, key, left_out) for key in begun.references}
        with _alive():
            encoded, rejected = self._encoder.encode_unit(plan, samples, pictures, known, shown)
        reasons = {key: left_out.get(key, reason) for key, reason in rejected if key not in journaled}
        return _Made(begun, encoded, reasons, len(known), shown)

    def _finish(self, made: _Made) -> tuple[pa.RecordBatch, int]:
        """Journal, keep and pack what was encoded: the unit, and how many of its samples are missing."""
        begun, plan = made.begun, made.begun.plan
        with self._stages("pack", len(made.encoded)):
            self._journal(plan, made.reasons)
            self._cache.put({begun.keys[s.key]: s.latent for s in made.encoded if s.key not in begun.known})
            for sample in made.encoded:
                if sample.key in made.shown:
                    self._references.keep(begun.references[sample.key], made.shown[sample.key], sample.references)
            self._stages.add("cached_samples", made.cached)
            missing = len(begun.rows) - len(made.encoded)
            return pack(self._header(plan.plan, plan.unit, missing), made.encoded), missing

    def _pictures(self, begun: _Begun, keys: list[str], left_out: dict[str, str]) -> Iterator[np.ndarray | str]:
        for key in keys:
            if key in left_out:
                yield left_out[key]
                continue
            with self._stages("wait"):
                found = begun.pictures[key].result()
            yield found

    def _shown(self, begun: _Begun, key: str, left_out: dict[str, str]) -> list[Shown]:
        if key in left_out:
            return [self._references.missing(reference, left_out[key]) for reference in begun.references[key]]
        with self._stages("wait"):
            return [future.result() for future in begun.shown[key]]

    def _journal(self, plan: UnitPlan, reasons: dict[str, str]) -> None:
        self._rejects.add(plan.plan, plan.unit, list(reasons.items()))
        for reason in reasons.values():
            self._stages.add(f"left_out_{reason.partition(':')[0].replace(' ', '_')}")

    # One sample at a time.

    def _try(self, begun: _Begun, row: dict[str, Any], attempt: Attempt) -> None:
        """See whether the process survives a sample's picture and caption, each alone; keep what comes of it."""
        key = row["key"]
        for part in _PARTS:
            if key in begun.left_out:
                return
            if attempt.survived(key, part):
                continue
            if attempt.deaths(key, part) >= _DEATHS:
                self._leave_out(begun, [key], _KILLED[part])
                return
            attempt.begin(key, part)
            references = begun.references.get(key, [])
            with _alive():
                shown = [self._references.show(reference) for reference in references]
                if part == "caption":
                    self._encoder.text([_caption(row["captions"], begun.plan.split)], [[one.seen for one in shown]])
                    continue
                self._references.keep(references, shown, self._encoder.references(shown))
                if key not in begun.known:
                    self._keep(begun, key, self._picture(row, begun.plan.bucket))

    def _keep(self, begun: _Begun, key: str, found: np.ndarray | str) -> None:
        (latent,) = self._encoder.latents(begun.plan.bucket, [found])
        if isinstance(latent, str):
            begun.pictures[key] = Future()
            begun.pictures[key].set_result(latent)
        else:
            begun.known[key] = latent
            self._cache.put({begun.keys[key]: latent})

    def _leave_out(self, begun: _Begun, keys: list[str], reason: str) -> None:
        fresh = {key: reason for key in keys if key not in begun.left_out}
        self._journal(begun.plan, fresh)
        begun.left_out |= fresh


def _let_go(begun: "Future[_Begun]") -> None:
    if not begun.cancelled() and begun.exception() is None:
        begun.result().cancel()


@contextmanager
def _alive() -> Iterator[None]:
    """A device that raised once raises ever after, until its process begins anew."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise MakerBrokenError(f"the device failed: {error}") from error


def _raw(row: dict[str, Any], plan: UnitPlan, left_out: dict[str, str]) -> Raw:
    key = row["key"]
    # A caption that ends the process is no neighbour for others either.
    caption = "" if left_out.get(key) in _SILENCED else _caption(row["captions"], plan.split)
    return Raw(key, row["source"], row["shard"], caption, plan.split, plan.task)


def _caption(captions: list[dict[str, Any]], split: str) -> str:
    """The first caption of `split`; the plan only takes rows that have one."""
    return next(str(caption["text"]) for caption in captions if caption["split"] == split)
