"""Curation of sets of any size from score files made up for them, and the anonymous memory that it took.

python -m tests.unit.producer.large_set FOLDER PIECE ROWS... prints a JSON object for each set. Unless PIECE is 0, so
many rows are compared at a time, and what comparing takes is traced, which is slower.
"""

import json
import re
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import producer.clusters
import producer.crowd
import producer.curate as engine
import producer.minhash
import producer.neighbours
import producer.operator.judgement
import producer.operator.retrieved
import producer.scratch
import producer.verdict
from producer.operator.embedding import pack
from producer.operator.stage import OperatorsConfig, build_stage
from producer.scoring import Job, fingerprint, score_path, score_schema
from producer.source.reader import SourceConfig
from producer.source.shard import Shard
from tests.unit.producer.tiny_encoders import siglip

SHARD = 1_000  # rows
_CONFIGS = Path(__file__).parents[3] / "launch/configs/curation"


def lengths(_: Path, texts: Sequence[str]) -> list[int]:
    return [len(text) // 4 for text in texts]


def make(rows: int, folder: Path, operators: OperatorsConfig) -> list[Shard]:
    """Score files of `rows` photographs: a twentieth copies of an earlier one, mirrored, some of them exact."""
    job = Job(source=SourceConfig(path=folder), operators=operators, scores=folder / "curate" / "scores", batch=16)
    stage = build_stage(operators)
    shape, version = score_schema(stage), fingerprint(job, stage)
    draw = np.random.default_rng(0)
    embeddings = [pack(draw.standard_normal(32)) for _ in range(99)]
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
                [{"split": "recaption", "text": f'A dog. "{some[0]}" {" ".join(some)}'}]
                for some in words[draw.integers(0, len(words), (count, 30))]
            ],
            "references": [[]] * count,
        }
        scores = {f"score.{one.name}": draw.uniform(200, 1500, count) for one in stage.single}
        scores["score.broken"] = np.where(draw.random(count) < 0.01, 0.0, 1.0)
        scores["score.file_size"] = np.full(count, 100_000.0)
        scores["score.caption"] = np.ones(count)
        read = [json.dumps([{"text": " ".join(some)}]) for some in words[draw.integers(0, len(words), (count, 3))]]
        scores["tag.text"] = read
        scores["tag.embedding"] = [embeddings[one] for one in draw.integers(0, 99, count)]
        empty = {name: [""] * count for name in shape.names if name.startswith(("note.", "failed."))}
        table = pa.table({**facts, **scores, **empty}).select(shape.names).cast(shape)
        path = score_path(job, shard, version)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)
    return shards


def everything(folder: Path) -> dict[str, dict[str, Any]]:
    """Every operator that looks at the whole set and needs no annotation, and what they read."""
    model, examples = siglip(folder / "siglip"), folder / "examples"
    (examples / "thing").mkdir(parents=True)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(examples / "thing" / "black.png")
    seen: dict[str, dict[str, Any]] = {"clarity": {}, "text": {}, "embedding": {"model": model}}
    ruled = {name: {"rules": _CONFIGS / f"{name}.toml"} for name in ("category", "domain")}
    tagged = {"taxonomy": {"tree": _CONFIGS / "taxonomy.toml"}, "character_rarity": {}, "rarity": {}}
    # Of all of which none is dropped for what it says, so that all are asked about all.
    judges = {"caption_duplicate": {}, "quoted_text": {"min": 0.0}, "best_per_class": {}}
    found = {"retrieved": {"examples": examples, "model": model, "min": -1.0, "most": 99}}
    return seen | ruled | tagged | judges | found


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def work_on(piece: int) -> None:
    """Compare so many rows at a time, so that a small set is a large one."""
    producer.scratch.PIECE = producer.neighbours._PART = producer.clusters._PAIRS = producer.minhash._PAIRS = piece
    producer.scratch._SMALL = producer.crowd._TEXTS = piece // 8
    producer.verdict.ROW_GROUP = producer.operator.judgement._ROWS = producer.operator.retrieved._ROWS = piece // 2


def trace(found: list[int]) -> None:
    """Have the bytes that comparing allocates at most put into `found`, those of mapped files and of Arrow aside."""
    decide = engine.Whole.decide

    def traced(self: engine.Whole) -> None:
        tracemalloc.start()
        decide(self)
        found.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    engine.Whole.decide = traced  # type: ignore[method-assign]


def curate(rows: int, folder: Path, operators: OperatorsConfig) -> engine.Funnel:
    shards = make(rows, folder, operators)
    source = type("Source", (), {"shards": lambda _: shards})()
    engine.open_source = lambda _: source
    return engine.curate(
        SourceConfig(path=folder),
        engine.CurateConfig(index=folder / "index"),
        operators,
        tokenizer=folder,
        resolutions=(256,),
        aspects=("1:1",),
    )


@contextmanager
def watched() -> Iterator[list[int]]:
    """The anonymous memory of this process while it runs, at most."""
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], anonymous())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def main(folder: Path, piece: int, *sizes: int) -> None:
    compared: list[int] = []
    if piece:
        work_on(piece)
        trace(compared)
    operators = OperatorsConfig.model_validate(everything(folder))
    engine.tokenizer_fingerprint = lambda _: "none"
    engine.count_tokens = lengths
    before = anonymous()
    for number, rows in enumerate(sizes):
        began, used = time.monotonic(), time.process_time()
        with watched() as most:
            funnel = curate(rows, folder / f"{number}", operators)
        out = {
            "rows": funnel.seen,
            "kept": funnel.kept,
            "dropped": funnel.dropped,
            "bytes": most[0] - before,
            "compared": compared.pop() if piece else None,
            "seconds": round(time.monotonic() - began, 1),
            "cpu": round(time.process_time() - used, 1),
        }
        print(json.dumps(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
