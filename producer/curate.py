"""Curation: every sample of a source is scored by the stage's operators, and what is known becomes an index generation.

Scores are one file per (shard, operator fingerprint), so Ray only schedules what is missing, and killing it loses
nothing but the shards in hand. Verdicts, duplicates and token lengths are made from all score files afterwards, in this
process: the index's bytes depend on the source and the settings, never on what was interrupted. Meant for sets whose
rows fit in memory (about 1 KB each).
"""

import difflib
import json
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, Field

from producer.api.bucket import Bucket, bucket, nearest
from producer.index import write_generation
from producer.lock import exclusive
from producer.operator.broken import Broken
from producer.operator.stage import OPT_IN, OperatorsConfig, Stage, absolute, build_stage, describe
from producer.scoring import Job, fingerprint, read_scores, score_path, score_shard
from producer.source.reader import SourceConfig, open_source
from producer.source.shard import Shard
from producer.tokens import count_tokens
from producer.tokens import fingerprint as tokenizer_fingerprint
from producer.verdict import decide

_LOCK_TIMEOUT_S = 10.0
# Ray keeps a record of every block; beyond this several shards share one.
_MAX_BLOCKS = 4096


class CurateError(ValueError):
    """A source cannot be curated: shards that cannot be read, or nothing left."""


class CurateConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    index: Path  # folder of the index
    work: Path | None = None  # folder of score files, on a cluster one that all nodes see; none: "curate" by the index
    address: str = "local"  # of Ray: local starts its own, auto or host:port joins a cluster
    cpus: float = Field(default=0.5, gt=0)  # cores a scoring task asks for; fractions let every task start on 2 cores
    batch: int = Field(default=16, ge=1)  # samples that operators see at a time, decoded at 512 pixels
    object_store_mb: int = Field(default=256, ge=80)  # of a local Ray; only file names travel through it
    stall_s: float = Field(default=900.0, gt=0)  # without any shard finished for so long, the run ends
    max_broken: float = Field(default=0.5, gt=0, le=1)  # share of samples without a readable picture; above, an error

    @property
    def scores(self) -> Path:
        """Where score files are kept."""
        return self.work or self.index.parent / "curate"


class Progress(NamedTuple):
    """What is being done, and how far it is."""

    stage: str  # scoring, judging, writing
    done: int  # shards
    total: int
    samples: int


@dataclass(frozen=True)
class Funnel:
    """What came in and what became of it: seen = kept + the sum of dropped."""

    generation: str  # id of the index generation
    seen: int
    kept: int
    dropped: dict[str, int]  # operator -> samples it dropped, in the order of operators
    example: dict[str, str]  # operator -> one "key: reason"
    buckets: dict[str, int]  # kept samples by bucket; empty ones are left out
    off: dict[str, str]  # operator -> why it did not judge
    shards: int
    scored: int  # shards scored in this run, the others' scores were there


def curate(
    source: SourceConfig,
    config: CurateConfig,
    operators: OperatorsConfig,
    *,
    tokenizer: Path,
    resolutions: Sequence[int],
    aspects: Sequence[str],
    progress: Callable[[Progress], None] = lambda _: None,
) -> Funnel:
    """Score what is not scored yet, judge everything, publish an index generation.

    Captions are measured by the tokenizer in the folder `tokenizer`; the buckets of `resolutions` and `aspects` are
    only counted. Raises CurateError, SourceError, ModelError, TokenizerError, LockError or ClusterError.
    """
    stage = build_stage(operators)
    _check_exempt(source, stage)
    measured_by = tokenizer_fingerprint(tokenizer)
    shards = open_source(source).shards()
    with exclusive(config.scores / ".lock", timeout_s=_LOCK_TIMEOUT_S):
        job = _job(source, config, operators)
        version = fingerprint(job, stage)
        paths = {shard: score_path(job, shard, version) for shard in shards}
        scores, scored = _scores(job, paths, config, progress)
        progress(Progress("judging", len(shards), len(shards), scores.num_rows))
        rows = decide(scores, stage, source=source, count_tokens=partial(count_tokens, tokenizer))
        dropped, example = _dropped(rows)
        if sum(dropped.values()) == rows.num_rows:
            said = ", ".join(f"{number} by {name} ({example[name]})" for name, number in dropped.items())
            raise CurateError(f"source.path: {source.path}: nothing is kept of {rows.num_rows} samples: {said}")
        broken = dropped.get(Broken.name, 0) / rows.num_rows
        if broken > config.max_broken:
            raise CurateError(
                f"curate.max_broken: {broken:.1%} of {rows.num_rows} samples have no readable picture, more than "
                f"{config.max_broken:.1%} ({example[Broken.name]}); repair the source, or allow more"
            )
        progress(Progress("writing", len(shards), len(shards), rows.num_rows))
        generation = write_generation(config.index, rows, tokenizer=measured_by, operators=describe(operators, stage))
    return Funnel(
        generation=generation,
        seen=rows.num_rows,
        kept=rows.num_rows - sum(dropped.values()),
        dropped={name: dropped.get(name, 0) for name in stage.names if name not in stage.off},
        example=example,
        buckets=_count_buckets(rows, resolutions, aspects),
        off=stage.off,
        shards=len(shards),
        scored=scored,
    )


def _check_exempt(source: SourceConfig, stage: Stage) -> None:
    """CurateError where a source is exempt from an operator that there is not, or whose verdict is about its bytes."""
    may = sorted({*stage.names, *OPT_IN} - {Broken.name})
    for name, one in source.also.items():
        wrong = next((operator for operator in one.exempt if operator not in may), "")
        if wrong:
            near = difflib.get_close_matches(wrong, may, 1)
            said = f"did you mean {near[0]}?" if near else f"there are {', '.join(may)}"
            raise CurateError(f"source.also.{name}.exempt: {wrong}: no operator to be exempt from; {said}")


def _job(source: SourceConfig, config: CurateConfig, operators: OperatorsConfig) -> Job:
    """With absolute paths: tasks run in folders of Ray's choice."""
    scores = config.scores.absolute() / "scores"
    return Job(source=source.absolute(), operators=absolute(operators), scores=scores, batch=config.batch)


def _scores(
    job: Job, paths: dict[Shard, Path], config: CurateConfig, progress: Callable[[Progress], None]
) -> tuple[pa.Table, int]:
    """The scores of all shards as one table, and how many shards had to be scored for it."""
    for orphan in job.scores.glob("*/*.parquet.*"):
        orphan.unlink(missing_ok=True)
    tables = {shard: read_scores(path) for shard, path in paths.items()}
    todo = [shard for shard, table in tables.items() if table is None]
    done, samples = len(tables) - len(todo), sum(table.num_rows for table in tables.values() if table is not None)
    progress(Progress("scoring", done, len(tables), samples))
    failed: list[str] = []

    def note(said: dict[str, Any]) -> None:
        nonlocal done, samples
        done, samples = done + 1, samples + said["samples"]
        if said["error"]:
            failed.append(f"{said['shard']}: {said['error']}")
        progress(Progress("scoring", done, len(tables), samples))

    if todo:
        _run(job, {shard: paths[shard] for shard in todo}, config, note)
    if failed:
        raise CurateError(f"{len(failed)} of {len(tables)} shards cannot be read, repair them first: {failed[:3]}")
    tables |= {shard: read_scores(paths[shard]) for shard in todo}
    missing = [str(paths[shard]) for shard, table in tables.items() if table is None]
    if missing:
        raise CurateError(f"curate.work: {missing[0]} was written and is not there; does every node see this folder?")
    return pa.concat_tables([table for table in tables.values() if table is not None]), len(todo)


def _run(job: Job, todo: dict[Shard, Path], config: CurateConfig, note: Callable[[dict[str, Any]], None]) -> None:
    """Score `todo` on Ray; `note` hears what each task said when it ends."""
    # Here, since settings are read by trainers, which must not load Ray, and so does a run that finds all scores.
    import ray.data

    from producer.cluster import cluster

    rows = [{"shard": json.dumps(shard), "path": str(path)} for shard, path in todo.items()]
    with cluster(config.address, object_store_bytes=config.object_store_mb << 20, setting="curate.address"):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        data = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MAX_BLOCKS))
        scored = data.map(partial(score_shard, job=job.model_dump_json()), num_cpus=config.cpus)
        for said in within(scored.iter_rows(), config.stall_s, "curate.stall_s"):
            note(said)


def within(rows: Iterable[dict[str, Any]], stall_s: float, setting: str) -> Iterator[dict[str, Any]]:
    """`rows` as they come; CurateError when there is none for `stall_s` seconds. They have no deadline of their own."""
    came: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()

    def pump() -> None:
        try:
            for row in rows:
                came.put(row)
            came.put(None)
        except BaseException as error:
            came.put(error)

    threading.Thread(target=pump, daemon=True).start()
    while True:
        try:
            row = came.get(timeout=stall_s)
        except queue.Empty:
            raise CurateError(
                f"{setting}: no shard was finished for {stall_s:g} s; what is done is kept, run it again to go on"
            ) from None
        if row is None:
            return
        if isinstance(row, BaseException):
            raise row
        yield row


def _dropped(rows: pa.Table) -> tuple[dict[str, int], dict[str, str]]:
    """How many samples each operator dropped, and one of them with its reason."""
    by = rows["dropped_by"].to_pylist()
    example: dict[str, str] = {}
    for name, key, reason in zip(by, rows["key"].to_pylist(), rows["reason"].to_pylist(), strict=True):
        example.setdefault(name, f"{key}: {reason}")
    counts = Counter(name for name in by if name)
    example.pop("", None)
    return dict(counts), example


def _count_buckets(rows: pa.Table, resolutions: Sequence[int], aspects: Sequence[str]) -> dict[str, int]:
    """Kept samples by bucket: the nearest in aspect of the largest resolution that is not above the picture's own."""
    sizes = {size: tuple(bucket(size, aspect) for aspect in aspects) for size in sorted(resolutions)}
    counts: Counter[Bucket] = Counter()
    for row in rows.select(["height", "width", "kept"]).to_pylist():
        if row["kept"]:
            fits = [size for size in sizes if size * size <= row["height"] * row["width"]] or [min(sizes)]
            counts[nearest(row["height"], row["width"], sizes[fits[-1]])] += 1
    return {str(one): counts[one] for of_size in sizes.values() for one in of_size if counts[one]}
