"""Scores of one shard: what a task does, and the file it leaves.

A shard's samples are decoded once, in fixed batches, and every operator that judges single samples sees them. The file
is written aside and renamed, and named by everything its content depends on: a file that is there is never wrong.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from producer.index import REFERENCE
from producer.operator.judgement import SIDE, Picture, Sample
from producer.operator.near_duplicate import hash_pixels
from producer.operator.stage import OperatorsConfig, Stage, build_stage, scoring
from producer.picture import Limits, PictureError, decode, decode_turned
from producer.reference import NARROWEST
from producer.source.reader import SourceConfig, open_source
from producer.source.shard import Place, RawSample, Reader, Shard, SourceError, UnreadableError

# Counts up with every change of what a score file holds.
_VERSION = 3

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


class Job(BaseModel, frozen=True, strict=True, extra="forbid"):
    """What is the same for every shard of a run."""

    source: SourceConfig
    operators: OperatorsConfig
    scores: Path  # folder of score files
    batch: int  # samples that operators see at a time


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
    """A task: write the scores of the shard in `row` to its path and say how many samples it has, or why not."""
    cv2.setNumThreads(1)
    shard = Shard(*json.loads(row["shard"]))
    shard = shard._replace(members=tuple(shard.members), sizes=tuple(shard.sizes), references=tuple(shard.references))
    reader, stage, batch = _opened(job)
    try:
        table = _score(reader, shard, stage, batch)
        write_scores(table, Path(row["path"]))
    except (SourceError, OSError) as error:
        return {"shard": shard.name, "samples": 0, "error": str(error)}
    return {"shard": shard.name, "samples": table.num_rows, "error": ""}


@functools.lru_cache(maxsize=1)
def _opened(job: str) -> tuple[Reader, Stage, int]:
    """Once a worker process, so that models are loaded once."""
    settings = Job.model_validate_json(job, strict=True)
    return open_source(settings.source), build_stage(settings.operators), settings.batch


def write_scores(table: pa.Table, path: Path) -> None:
    """Write aside and rename, so that a file of this name is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        pq.write_table(table, aside, compression="zstd", write_page_checksum=True)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _score(reader: Reader, shard: Shard, stage: Stage, batch: int) -> pa.Table:
    rows: list[dict[str, Any]] = []
    found = reader.samples(shard)
    while raw := list(islice(found, batch)):
        rows += score_batch(reader, raw, stage)
    return pa.Table.from_pylist(rows, schema=score_schema(stage))


def score_schema(stage: Stage) -> pa.Schema:
    """The columns of a score file: facts, and what each operator that works in parallel said of samples or captions."""
    columns: list[tuple[str, pa.DataType]] = list(_FACTS)
    for one in stage.single:
        columns += [(f"score.{one.name}", pa.float64()), (f"note.{one.name}", pa.string())]
    for judge in stage.captions:
        columns += [(f"score.{judge.name}", pa.list_(pa.float64())), (f"note.{judge.name}", pa.list_(pa.string()))]
    return pa.schema([*columns, *((f"tag.{tagger.name}", pa.string()) for tagger in stage.tags)])


def score_batch(reader: Reader, raw: list[RawSample], stage: Stage) -> Iterator[dict[str, Any]]:
    """The rows of a score file for `raw`, which operators see as one batch."""
    rows, samples = zip(*(look(reader, one, stage) for one in raw), strict=True)
    for one in stage.single:
        for row, score in zip(rows, one.score(samples), strict=True):
            row[f"score.{one.name}"], row[f"note.{one.name}"] = score
    for judge in stage.captions:
        for row, scores in zip(rows, judge.score_captions(samples), strict=True):
            row[f"score.{judge.name}"] = [score.value for score in scores]
            row[f"note.{judge.name}"] = [score.note for score in scores]
    for tagger in stage.tags:
        for row, tag in zip(rows, tagger.tag(samples), strict=True):
            row[f"tag.{tagger.name}"] = tag
    yield from rows


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
    picture = Picture(*image.size, _reduced(pixels), _middle(pixels), orientation)
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


def _reduced(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
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
