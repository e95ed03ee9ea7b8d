"""Curation of a set of any size from score files made up for it, and the anonymous memory that it took.

python -m tests.unit.producer.large_set ROWS FOLDER [PIECE] prints a JSON object. With PIECE so many rows are compared
at a time, and what comparing takes is traced, which is slower.
"""

import json
import re
import sys
import threading
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import producer.clusters
import producer.crowd
import producer.curate as engine
import producer.minhash
import producer.neighbours
import producer.scratch
from producer.operator.stage import OperatorsConfig, build_stage
from producer.scoring import Job, fingerprint, score_path, score_schema
from producer.source.reader import SourceConfig
from producer.source.shard import Shard

SHARD = 10_000  # rows


def lengths(_: Path, texts: Sequence[str]) -> list[int]:
    return [len(text) // 4 for text in texts]


def make(rows: int, folder: Path, operators: OperatorsConfig) -> list[Shard]:
    """Score files of `rows` photographs: a twentieth copies of an earlier one, mirrored, some of them exact."""
    job = Job(source=SourceConfig(path=folder), operators=operators, scores=folder / "curate" / "scores", batch=16)
    stage = build_stage(operators)
    shape, version = score_schema(stage), fingerprint(job, stage)
    draw = np.random.default_rng(0)
    words = np.asarray(
        [one + other + end for one in "bcdfghlmnprst" for other in "aeiou" for end in ("lling", "rt", "n")]
    )
    shards = [Shard(f"set-{number:05d}.tar", f"stamp {number}") for number in range(max(1, rows // SHARD))]
    before = draw.integers(0, 2**64, (4, SHARD), np.uint64)
    for number, shard in enumerate(shards):
        count = min(SHARD, rows)
        hashes = draw.integers(0, 2**64, (4, count), np.uint64)
        copies = draw.choice(count, count // 20, replace=False)
        hashes[:, copies] = before[:, copies][[2, 3, 0, 1]] ^ np.uint64(1 << int(draw.integers(0, 64)))
        digests = [f"{number:08x}{row:08x}".ljust(64, "0") for row in range(count)]
        before = hashes
        facts = {
            "key": [f"set-{number:05d}/{row:08d}" for row in range(count)],
            "shard": [shard.name] * count,
            "member": [f"{row:08d}.jpg" for row in range(count)],
            "offset": np.arange(count) * 100_000,
            "size": np.full(count, 100_000),
            "width": draw.integers(200, 1500, count).astype(np.int32),
            "height": draw.integers(200, 1500, count).astype(np.int32),
            "sha256": digests,
            **dict(zip(("phash", "dhash", "phash_mirror", "dhash_mirror"), hashes, strict=True)),
            "captions": [
                [{"split": "raw", "text": " ".join(some)}] for some in words[draw.integers(0, len(words), (count, 30))]
            ],
            "references": [[]] * count,
        }
        scores = {f"score.{one.name}": draw.uniform(200, 1500, count) for one in stage.single}
        scores["score.broken"] = np.where(draw.random(count) < 0.01, 0.0, 1.0)
        scores["score.file_size"] = np.full(count, 100_000.0)
        scores["score.caption"] = np.ones(count)
        empty = {name: [""] * count for name in shape.names if name.startswith(("note.", "failed."))}
        table = pa.table({**facts, **scores, **empty}).select(shape.names).cast(shape)
        path = score_path(job, shard, version)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)
    return shards


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def work_on(piece: int) -> None:
    """Compare so many rows at a time, so that a small set is a large one."""
    producer.scratch.PIECE = producer.neighbours._PART = producer.clusters._PAIRS = producer.minhash._PAIRS = piece
    producer.scratch._SMALL = producer.crowd._TEXTS = piece // 8


def trace(found: list[int]) -> None:
    """Have the bytes that comparing allocates at most put into `found`, those of mapped files and of Arrow aside."""
    decide = engine.Whole.decide

    def traced(self: engine.Whole) -> None:
        tracemalloc.start()
        decide(self)
        found.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    engine.Whole.decide = traced  # type: ignore[method-assign]


def main(rows: int, folder: Path, piece: int | None = None) -> None:
    compared: list[int] = []
    if piece:
        work_on(piece)
        trace(compared)
    operators = OperatorsConfig.model_validate({"caption_duplicate": {}})
    shards = make(rows, folder, operators)
    source = type("Source", (), {"shards": lambda _: shards})()
    engine.open_source = lambda _: source
    engine.tokenizer_fingerprint = lambda _: "none"
    engine.count_tokens = lengths
    before, most, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, anonymous())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    began, used = time.monotonic(), time.process_time()
    said: list[engine.Progress] = []
    funnel = engine.curate(
        SourceConfig(path=folder),
        engine.CurateConfig(index=folder / "index"),
        operators,
        tokenizer=folder,
        resolutions=(256,),
        aspects=("1:1",),
        progress=said.append,
    )
    done.set()
    thread.join()
    out = {
        "rows": funnel.seen,
        "kept": funnel.kept,
        "dropped": funnel.dropped,
        "bytes": most - before,
        "compared": sum(compared),
        "seconds": round(time.monotonic() - began, 1),
        "cpu": round(time.process_time() - used, 1),
    }
    print(json.dumps(out))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
