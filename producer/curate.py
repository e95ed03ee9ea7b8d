"""Curation: every sample of a source is scored by the stage's operators, and what is known becomes an index generation.

Scores are one file per (shard, operator fingerprint), so Ray only schedules what is missing, and killing it loses
nothing but the shards in hand. Everything after that is made anew from all score files, in this process: verdicts shard
by shard, the rows of all shards in the order of their keys, comparisons of the whole set, the index. The index's bytes
depend on the source, the settings and what older generations kept, never on what was interrupted. In memory are the
rows of a shard and a few thousand of others; what is as large as the set lies in files of `curate.work`, mapped.
"""

import difflib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, Field

from producer.annotate.join import Annotations
from producer.deaths import at_work
from producer.funnel import Funnel, Tally
from producer.index import new_generation
from producer.judging import judge
from producer.lock import exclusive
from producer.older import Older
from producer.operator.broken import Broken
from producer.operator.stage import OPT_IN, OperatorsConfig, Stage, absolute, build_stage, describe, runs_models
from producer.output_folder import make_folder
from producer.patience import rows_of, within
from producer.runs import Run, read_in_order, write_run
from producer.scoring import Job, ShardScorer, count_failed, fingerprint, read_scores, score_path, score_shard
from producer.source.reader import SourceConfig, open_source
from producer.source.shard import Shard
from producer.tokens import count_tokens
from producer.tokens import fingerprint as tokenizer_fingerprint
from producer.verdict import Whole, WholeError

_LOCK_TIMEOUT_S = 10.0
_GPU_SHARE = 0.25
# Below so many samples a share of failed ones is no reason to stop before the end.
_FEW = 1000


class CurateError(ValueError):
    """A source cannot be curated: shards that cannot be read, operators that fail, or nothing left."""


class CurateConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    index: Path  # folder of the index
    work: Path | None = None  # folder of score files, on a cluster one that all nodes see; none: "curate" by the index
    annotations: tuple[Path, ...] = ()  # folders of launch/annotate.py, whose captions and tags join; later ones win
    address: str = "local"  # of Ray: local starts its own, auto or host:port joins a cluster
    cpus: float = Field(default=0.5, gt=0)  # cores a scoring task asks for; fractions let every task start on 2 cores
    # Of a GPU, for each scorer where an operator runs a model; 0: none; not given: a quarter where there are GPUs,
    # since decoding would keep one waiting.
    gpus: float | None = Field(default=None, ge=0)
    batch: int = Field(default=16, ge=1)  # samples that operators see at a time, decoded at 512 pixels
    object_store_mb: int = Field(default=256, ge=80)  # of a local Ray; only file names travel through it
    # Reading a picture, or an operator on a batch, that takes longer ends its process; who does so twice is left out.
    hang_s: float = Field(default=600.0, gt=0)
    stall_s: float = Field(default=900.0, gt=0)  # with nothing finished for so long, no batch of a shard, the run ends
    max_broken: float = Field(default=0.5, gt=0, le=1)  # share of a source without a readable picture; above, an error
    max_failed: float = Field(
        default=0.01, ge=0, le=1
    )  # share of samples that operators raise on; above, the run stops
    retry_failed: bool = False  # whether operators are asked again about samples that they raised on in earlier runs

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
    lost: Mapping[str, int] = MappingProxyType(
        {}
    )  # samples dropped so far, by operator; "failed by" it where it raised


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
    only counted. Raises CurateError, AnnotateError, SourceError, ModelError, TokenizerError,
    FolderError, StallError, LockError or ClusterError.
    """
    annotations = Annotations(config.annotations, source)
    stage = build_stage(operators, annotations.tags)
    _check_exempt(source, stage)
    measured_by = tokenizer_fingerprint(tokenizer)
    shards = open_source(source).shards()
    # Before hours of scoring, and not after them.
    make_folder("curate.index", config.index)
    make_folder("curate.work", config.scores)
    with exclusive(config.scores / ".lock", timeout_s=_LOCK_TIMEOUT_S), _scratch(config.scores) as scratch:
        job = _job(source, config, operators)
        version = fingerprint(job, stage)
        paths = {shard: score_path(job, shard, version) for shard in shards}
        scored = _score_missing(job, stage, paths, config, progress)
        judged = partial(judge, stage=stage, source=source, count_tokens=partial(count_tokens, tokenizer))
        runs = _judge(list(paths.values()), lambda scores: judged(annotations.join(scores)), scratch, progress)
        annotations.check()
        whole = Whole(stage, source, Older(config.index), scratch)
        for rows in read_in_order(runs, scratch):
            whole.add(rows)
        try:
            whole.decide()
        except WholeError as error:
            raise CurateError(str(error)) from error
        tally = Tally(resolutions, aspects)
        with new_generation(config.index, tokenizer=measured_by, operators=describe(operators, stage)) as writer:
            for rows in whole.tables():
                tally.add(rows)
                writer.write(rows)
            _check(tally, source, config)
            progress(Progress("writing", len(shards), len(shards), tally.seen, _lost(tally.dropped, tally.failed)))
        return tally.funnel(writer.id, stage, shards=len(shards), scored=scored)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for files of this run, in `folder`; those that dead runs left are removed."""
    for orphan in folder.glob("judging-*"):
        shutil.rmtree(orphan)
    scratch = Path(tempfile.mkdtemp(prefix="judging-", dir=folder))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _judge(
    paths: Sequence[Path], judged: Callable[[pa.Table], pa.Table], scratch: Path, progress: Callable[[Progress], None]
) -> list[Run]:
    """The samples of every score file judged by themselves, sorted, a file a shard."""
    runs, tally = [], Tally((256,), ("1:1",))
    for number, path in enumerate(paths):
        scores = read_scores(path)
        if scores is None:
            raise CurateError(f"curate.work: {path} was written and is not there; does every node see this folder?")
        rows = judged(scores)
        tally.add(rows)
        if run := write_run(rows, scratch / f"{number:08d}.arrow"):
            runs.append(run)
        progress(Progress("judging", number + 1, len(paths), tally.seen, _lost(tally.dropped, tally.failed)))
    return runs


def _lost(dropped: Mapping[str, int], failed: Mapping[str, int]) -> dict[str, int]:
    return dict(dropped) | {f"failed by {name}": number for name, number in failed.items()}


def _check(tally: Tally, source: SourceConfig, config: CurateConfig) -> None:
    """CurateError where what is kept is not worth an index."""
    if not tally.kept:
        raise CurateError(f"source.path: {source.path}: nothing is kept of {tally.seen} samples: {tally.lost()}")
    # Of each source by itself, or a large one would hide that its neighbour's settings are wrong.
    for name, seen in tally.sources.items():
        share = tally.broken[name] / seen
        if share > config.max_broken:
            of = f" of source {name}" if source.also else ""
            raise CurateError(
                f"curate.max_broken: {share:.1%} of {seen} samples{of} have no readable picture, more than "
                f"{config.max_broken:.1%} ({tally.broken_example[name]}); repair the source, or allow more"
            )
    _check_failed(tally.failed, tally.seen, tally.lost(), config)


def _check_failed(failed: Mapping[str, int], samples: int, example: str, config: CurateConfig) -> None:
    """CurateError, which names the operator, where too many samples failed."""
    number = sum(failed.values())
    if number > config.max_failed * samples:
        worst = max(failed, key=lambda name: failed[name])
        raise CurateError(
            f"curate.max_failed: operators failed on {number / samples:.1%} of {samples} samples, more than "
            f"{config.max_failed:.1%}; operators.{worst} on {failed[worst]} ({example}); mend it, turn it off, or "
            "allow more; curate.retry_failed = true tries again what failed"
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
    return Job(
        source=source.absolute(),
        operators=absolute(operators),
        scores=scores,
        batch=config.batch,
        hang_s=config.hang_s,
    )


def _score_missing(
    job: Job, stage: Stage, paths: dict[Shard, Path], config: CurateConfig, progress: Callable[[Progress], None]
) -> int:
    """Have all score files written that are not there; how many that were."""
    for orphan in job.scores.glob("*/*.parquet.*"):
        orphan.unlink(missing_ok=True)
    todo = {}
    samples = 0
    for shard, path in paths.items():
        table = read_scores(path)
        if table is None or (config.retry_failed and count_failed(table, stage)[0]):
            todo[shard] = path
        else:
            samples += table.num_rows
    done = len(paths) - len(todo)
    progress(Progress("scoring", done, len(paths), samples))
    unread: list[str] = []
    dropped: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    spoilt: list[Path] = []
    example = ""

    def note(said: dict[str, Any]) -> None:
        nonlocal done, samples, example
        done, samples, example = done + 1, samples + said["samples"], example or said["example"]
        if said["error"]:
            unread.append(f"{said['shard']}: {said['error']}")
        dropped.update(json.loads(said["dropped"]))
        if mine := json.loads(said["failed"]):
            failed.update(mine)
            spoilt.append(Path(said["path"]))
        progress(Progress("scoring", done, len(paths), samples, _lost(dropped, failed)))
        if samples >= _FEW or done == len(paths):
            _check_failed(failed, samples, example, config)

    try:
        if todo:
            _run(job, todo, config, note)
    except CurateError:
        # What failed may be mended by then: the next run asks again.
        for path in spoilt:
            path.unlink(missing_ok=True)
        raise
    if unread:
        raise CurateError(
            f"{len(unread)} of {len(paths)} shards are not scored: {'; '.join(unread[:3])}; mend that and run it again"
        )
    return len(todo)


def _run(job: Job, todo: dict[Shard, Path], config: CurateConfig, note: Callable[[dict[str, Any]], None]) -> None:
    """Score `todo` on Ray; `note` hears what each task said when it ends."""
    # Here, since settings are read by trainers, which must not load Ray, and so does a run that finds all scores.
    import ray.data

    from producer.cluster import cluster, dataset

    rows = [{"shard": json.dumps(shard), "path": str(path)} for shard, path in todo.items()]
    with cluster(config.address, object_store_bytes=config.object_store_mb << 20, setting="curate.address"):
        data = dataset(rows)
        if runs_models(job.operators):
            actor: Any = ShardScorer  # Ray's types know functions alone
            how: dict[str, Any] = {"fn_constructor_args": (job.model_dump_json(),), "num_gpus": gpu_share(config)}
            pool = ray.data.ActorPoolStrategy(min_size=1, max_size=len(rows))
            scored = data.map(actor, compute=pool, num_cpus=config.cpus, **how)
        else:
            scored = data.map(partial(score_shard, job=job.model_dump_json()), num_cpus=config.cpus)
        # A shard of many pictures that are read takes longer than that.
        sign = partial(at_work, next(iter(todo.values())).parent)
        for said in within(rows_of(scored), config.stall_s, "curate.stall_s", sign):
            note(said)


def gpu_share(config: CurateConfig) -> float:
    """The share of a GPU that a scorer asks for, on the Ray that was joined."""
    import ray

    there = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    if config.gpus and not there and config.address == "local":
        raise CurateError(
            f"curate.gpus: {config.gpus:g}, and this machine has no GPU; set 0, or join a cluster that has"
        )
    return (_GPU_SHARE if there else 0) if config.gpus is None else config.gpus
