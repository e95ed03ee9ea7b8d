"""Scores of one shard: what a task does, and the file it leaves.

A shard's samples are decoded once, in fixed batches, and every operator that judges single samples sees them. The file
is written aside and renamed, and named by everything its content depends on: a file that is there is never wrong. What
a file of other operators says already is taken from there, so that a new operator is the only one that works.

An operator that raises costs the samples it raises on: the batch is tried again sample by sample, and who failed, and
why, is in the file. One that ends its process costs the sample that ended two (producer/deaths.py).
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from producer.deaths import ENOUGH, Deaths
from producer.index import REFERENCE
from producer.judging import count_dropped
from producer.operator.judgement import FINE, SIDE, Picture, Sample, Score, what_failed
from producer.operator.near_duplicate import hash_pixels
from producer.operator.stage import OperatorsConfig, Stage, build_stage, scored_by, scoring
from producer.picture import Limits, PictureError, decode, decode_turned
from producer.reference import NARROWEST
from producer.source.reader import SourceConfig, open_source
from producer.source.shard import Place, RawSample, Reader, Shard, SourceError, UnreadableError

# Counts up with every change of what a score file holds.
_VERSION = 4

_CAPTION = pa.struct([("split", pa.string()), ("text", pa.string())])
_FACTS = [
    ("key", pa.string()),
    ("shard", pa.string()),
    ("member", pa.string()),
    ("offset", pa.int64()),
    ("size", pa.int64()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("sha256", pa.string()),
    ("phash", pa.uint64()),
    ("dhash", pa.uint64()),
    ("phash_mirror", pa.uint64()),  # of the mirrored picture
    ("dhash_mirror", pa.uint64()),
    ("captions", pa.list_(_CAPTION)),
    ("references", pa.list_(REFERENCE)),
]


Answer = TypeVar("Answer")


class Job(BaseModel, frozen=True, strict=True, extra="forbid"):
    """What is the same for every shard of a run."""

    source: SourceConfig
    operators: OperatorsConfig
    scores: Path  # folder of score files
    batch: int  # samples that operators see at a time
    hang_s: float = 0.0  # as curate.hang_s; 0: no limit


def score_path(job: Job, shard: Shard, fingerprint: str) -> Path:
    """Where the scores of `shard` by the operators of `fingerprint` are kept."""
    _, source = job.source.of(shard.name)
    content = json.dumps([*source.identity(), shard.name, shard.stamp, shard.members])
    return job.scores / fingerprint[:16] / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.parquet"


def fingerprint(job: Job, stage: Stage) -> str:
    """A hash of all that scores depend on besides the shard."""
    said = json.dumps([_VERSION, scoring(job.operators, stage), job.batch], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def read_scores(path: Path) -> pa.Table | None:
    """The score file at `path`, None if there is none or it is damaged."""
    try:
        return pq.read_table(path, page_checksum_verification=True, memory_map=True)
    except (OSError, pa.ArrowException):
        return None


def score_shard(row: dict[str, Any], job: str) -> dict[str, Any]:
    """A task: write the scores of the shard in `row` to its path and say how many samples it has, or why not.

    "dropped" is a JSON object of samples by the operator that drops them, "failed" one by the operator that raised on
    them, "example" one of these with its reason. What the source is exempt from is in neither: it costs no sample.
    """
    cv2.setNumThreads(1)
    shard = Shard._make(tuple(one) if isinstance(one, list) else one for one in json.loads(row["shard"]))
    settings, reader, stage = _opened(job)
    said: dict[str, Any] = {"shard": shard.name, "path": row["path"]}
    said |= {"samples": 0, "dropped": "{}", "failed": "{}", "example": "", "error": ""}
    try:
        table = _score(reader, shard, stage, settings, Path(row["path"]))
        write_scores(table, Path(row["path"]))
    except SourceError as error:
        return said | {"error": f"cannot be read: {error}"}
    except OSError as error:
        # The source's, or that of the disk where scores are written.
        return said | {"error": str(error)}
    source, _ = settings.source.of(shard.name)
    drop = [name for name in stage.scored if source not in settings.source.exempt(name)]
    failed, example = count_failed(table, stage.only(drop))
    said |= {"dropped": json.dumps(count_dropped(table, stage, source=settings.source))}
    return said | {"samples": table.num_rows, "failed": json.dumps(failed), "example": example}


def count_failed(table: pa.Table, stage: Stage) -> tuple[dict[str, int], str]:
    """Samples of a score file on which operators raised, by operator, and one of them."""
    counts, example = dict[str, int](), ""
    for name in stage.scored:
        failed = table.filter(pc.not_equal(table[f"failed.{name}"], ""))
        if failed.num_rows:
            counts[name] = failed.num_rows
            example = example or f"{failed['key'][0].as_py()}: {failed[f'failed.{name}'][0].as_py()}"
    return counts, example


class ShardScorer:
    """`score_shard` as an actor: Ray keeps it for many shards, and so the models that it loads with the first."""

    def __init__(self, job: str) -> None:
        """`job` is that of `score_shard`."""
        self._job = job

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return score_shard(row, self._job)


@functools.lru_cache(maxsize=1)
def _opened(job: str) -> tuple[Job, Reader, Stage]:
    """Once a worker process, so that models are loaded once."""
    settings = Job.model_validate_json(job, strict=True)
    return settings, open_source(settings.source), build_stage(settings.operators)


def write_scores(table: pa.Table, path: Path) -> None:
    """Write aside and rename, so that a file of this name is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        pq.write_table(table, aside, compression="zstd", write_page_checksum=True)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _score(reader: Reader, shard: Shard, stage: Stage, job: Job, path: Path) -> pa.Table:
    """The scores of `shard`: what other score files of it know, and the rest by asking."""
    by = scored_by(job.operators, stage)
    by = {name: hashlib.sha256(f"{_VERSION} {job.batch} {said}".encode()).hexdigest()[:32] for name, said in by.items()}
    known = _known(job, path, stage, by)
    missing = [name for name in by if name not in known]
    if missing:
        fresh = _ask(reader, shard, stage.only(missing), job, path)
        for name in known:
            # Of a shard with this name and stamp; still, a column of another length would be misread.
            if known[name].num_rows != fresh.num_rows:
                fresh, known = _ask(reader, shard, stage, job, path), {}
                break
    columns = {name: fresh[name] for name in fresh.column_names} if missing else {}
    for table in known.values():
        columns |= {name: table[name] for name in table.column_names if name not in columns}
    shape = score_schema(stage)
    metadata = {f"{_SCORED_BY}{name}": said for name, said in by.items()}
    return pa.table([columns[name] for name in shape.names], schema=shape).replace_schema_metadata(metadata)


# Before an operator's name, in a score file's metadata, of what its columns depend on.
_SCORED_BY = "scored by "


def _known(job: Job, path: Path, stage: Stage, by: dict[str, str]) -> dict[str, pa.Table]:
    """By operator, its columns in score files that lie beside `path`, of the same shard; without failed samples."""
    found: dict[str, pa.Table] = {}
    for other in sorted(job.scores.glob(f"*/{path.name}")):
        try:
            said = pq.read_schema(other).metadata or {}
        except (OSError, pa.ArrowException):
            continue
        shared = [name for name in by if said.get(f"{_SCORED_BY}{name}".encode()) == by[name].encode()]
        if set(shared) <= found.keys() or (table := read_scores(other)) is None:
            continue
        failed, _ = count_failed(table, stage.only(shared))
        for name in shared:
            if name not in failed and name not in found:
                found[name] = table.select([column for column in table.column_names if _owner(column) == name])
    return found


def _owner(column: str) -> str:
    """The operator whose column it is, "" for a fact."""
    kind, _, name = column.partition(".")
    return name if kind in ("score", "note", "failed", "tag") else ""


def _ask(reader: Reader, shard: Shard, stage: Stage, job: Job, path: Path) -> pa.Table:
    rows: list[dict[str, Any]] = []
    found = reader.samples(shard)
    deaths, whole = Deaths(path, job.hang_s), False
    try:
        while raw := list(islice(found, job.batch)):
            rows += score_batch(reader, raw, stage, deaths, len(rows))
        whole = True
    finally:
        deaths.close(forget=whole)
    return pa.Table.from_pylist(rows, schema=score_schema(stage))


def score_schema(stage: Stage) -> pa.Schema:
    """The columns of a score file: facts, and what each operator that works in parallel said of samples or captions.

    failed.NAME is what the operator raised on the sample, "" where it did not.
    """
    columns: list[tuple[str, pa.DataType]] = list(_FACTS)
    for one in stage.single:
        columns += [(f"score.{one.name}", pa.float64()), (f"note.{one.name}", pa.string())]
    for judge in stage.captions:
        columns += [(f"score.{judge.name}", pa.list_(pa.float64())), (f"note.{judge.name}", pa.list_(pa.string()))]
    columns += [(f"tag.{tagger.name}", pa.string()) for tagger in stage.tags]
    return pa.schema([*columns, *((f"failed.{name}", pa.string()) for name in stage.scored)])


def score_batch(
    reader: Reader, raw: list[RawSample], stage: Stage, deaths: Deaths | None = None, first: int = 0
) -> Iterator[dict[str, Any]]:
    """The rows of a score file for `raw`, from the `first` of its shard on, which operators see as one batch."""
    batch = _Batch(deaths or Deaths(), first)
    rows, samples = zip(*(batch.look(reader, one, stage, place) for place, one in enumerate(raw)), strict=True)
    for one in stage.single:
        for row, score in zip(rows, batch.ask(one.name, one.score, samples, Score(None), rows), strict=True):
            row[f"score.{one.name}"], row[f"note.{one.name}"] = score
    for judge in stage.captions:
        none: list[Score] = []
        for row, scores in zip(rows, batch.ask(judge.name, judge.score_captions, samples, none, rows), strict=True):
            row[f"score.{judge.name}"] = [score.value for score in scores]
            row[f"note.{judge.name}"] = [score.note for score in scores]
    for tagger in stage.tags:
        for row, tag in zip(rows, batch.ask(tagger.name, tagger.tag, samples, "", rows), strict=True):
            row[f"tag.{tagger.name}"] = tag
    yield from rows


class _Batch(NamedTuple):
    """Samples from the `first` of a shard on, and what is known of processes that ended there."""

    deaths: Deaths
    first: int

    def look(self, reader: Reader, raw: RawSample, stage: Stage, place: int) -> tuple[dict[str, Any], Sample]:
        """As `look`; what ended processes that read it is not read."""
        if self.deaths.count(_READING, self.first + place, 1) >= ENOUGH:
            raw = replace(raw, fault=_ENDED)
        with self.deaths.at(_READING, self.first + place, 1):
            return look(reader, raw, stage)

    def ask(
        self,
        name: str,
        ask: Callable[[Sequence[Sample]], list[Answer]],
        samples: Sequence[Sample],
        none: Answer,
        rows: Sequence[dict[str, Any]],
    ) -> list[Answer]:
        """What operator `name` says of `samples`; `none` of those it fails on, which is written to their rows."""
        try:
            # A batch that ended a process is taken apart.
            if not self.deaths.count(name, self.first, len(samples)):
                with self.deaths.at(name, self.first, len(samples)):
                    said = ask(samples)
                if len(said) == len(samples):
                    for row in rows:
                        row[f"failed.{name}"] = ""
                    return said
        except Exception:
            # Any error of an operator's own; who is the cause is found below.
            pass
        said = []
        for place, (sample, row) in enumerate(zip(samples, rows, strict=True), self.first):
            answer, row[f"failed.{name}"] = none, _ENDED
            if self.deaths.count(name, place, 1) < ENOUGH:
                try:
                    with self.deaths.at(name, place, 1):
                        (answer,) = ask([sample])
                    row[f"failed.{name}"] = ""
                except Exception as error:
                    row[f"failed.{name}"] = what_failed(error)
            said.append(answer)
        return said


# What is noted while a sample is read and decoded, in an operator's place.
_READING = "reading it"
_ENDED = f"{ENOUGH} processes ended at it"


def look(reader: Reader, raw: RawSample, stage: Stage) -> tuple[dict[str, Any], Sample]:
    """Read and decode one sample: its row of facts, and what operators see."""
    row: dict[str, Any] = {
        "key": raw.key,
        "shard": raw.shard,
        "member": raw.member,
        "offset": raw.offset,
        "size": raw.size,
        "captions": [{"split": split, "text": text} for split, text in sorted(raw.captions.items())],
        "references": [],
        "width": 0,
        "height": 0,
        "sha256": "",
        "phash": 0,
        "dhash": 0,
        "phash_mirror": 0,
        "dhash_mirror": 0,
    }
    if raw.fault:
        return row, Sample(raw, None, raw.fault)
    if raw.size > stage.broken.limits.bytes:
        return row, Sample(raw, None, f"{raw.size} bytes, the limit is {stage.broken.limits.bytes}")
    try:
        content = raw.image if raw.image is not None else reader.read(raw.shard, raw.member, raw.offset, raw.size)
    except UnreadableError as error:
        return row, Sample(raw, None, str(error))
    row["sha256"] = hashlib.sha256(content).hexdigest()
    try:
        image, orientation = decode_turned(content, stage.broken.limits)
    except PictureError as error:
        return row, Sample(raw, None, str(error))
    pixels = np.asarray(image)
    fine = _reduced(pixels, FINE) if stage.fine and max(image.size) > SIDE else None
    picture = Picture(*image.size, _reduced(pixels, SIDE), _middle(pixels), orientation, fine)
    row["width"], row["height"] = image.size
    row["phash"], row["dhash"], row["phash_mirror"], row["dhash_mirror"] = hash_pixels(picture.pixels)
    for number, place in enumerate(raw.references, 1):
        found = _look_at_reference(reader, raw.shard, place, stage.broken.limits)
        if isinstance(found, str):
            return row, Sample(raw, None, f"reference {number}: {found}")
        row["references"].append(found)
    return row, Sample(raw, picture)


def _look_at_reference(reader: Reader, shard: str, place: Place, limits: Limits) -> dict[str, Any] | str:
    """Read and decode a reference: its entry in the index, or why it cannot be used."""
    if place.size > limits.bytes:
        return f"{place.size} bytes, the limit is {limits.bytes}"
    try:
        content = reader.read(shard, *place)
        width, height = decode(content, limits).size
    except (UnreadableError, PictureError) as error:
        return str(error)
    if max(width, height) > NARROWEST * min(width, height):
        return f"{width}x{height} pixels, narrower than 1:{NARROWEST}"
    return {**place._asdict(), "width": width, "height": height, "sha256": hashlib.sha256(content).hexdigest()}


def _reduced(pixels: np.ndarray, side: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _middle(pixels: np.ndarray) -> np.ndarray | None:
    height, width = pixels.shape[:2]
    if max(height, width) <= SIDE:
        return None
    top, left = max(0, height - SIDE) // 2, max(0, width - SIDE) // 2
    # A copy: a view would keep the whole picture for the batch.
    return pixels[top : top + SIDE, left : left + SIDE].copy()
