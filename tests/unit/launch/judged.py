"""An index to look at, made up: every kind of operator, captions of two splits, and words that would do harm."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from producer.digest import hash_file
from producer.index import schema, write_generation

# What each may do to a page that takes it for markup: set window.fired.
HOSTILE = (
    "<script>window.fired=1</script>",
    "</script><script>window.fired=2</script>",
    '"onload="window.fired=3" x="',
    "<img src=x onerror=window.fired=4>",
    "\u2028window.fired=5\u2029;</style><!--",
    "javascript:window.fired=6",
    "${window.fired=7} {{window.fired=8}} &lt;b&gt; \u202e",
)
KEPT, REFUSED, NOT_JUDGED = 1, 0, -1
_SPLITS = ((), ("raw",), ("raw", "recaption"), ("raw", "recaption"), ("recaption",))
# Samples of other sources than the first are exempt from these.
FIRST, EXEMPT = "photos", ("clarity", "token_length")
OPERATORS: dict[str, Any] = {
    "broken": {"version": 1},
    "file_size": {"version": 1, "min": 2048},
    "clarity": {"version": 1, "min": 2.3},
    "contrast_of_mine": {"version": 1, "min": 0.2, "max": 0.9},  # of no file of this release
    "token_length": {"version": 1, "max": 60, "of": "captions"},
    "likeness_of_mine": {"version": 1, "min": 0.1, "of": "captions"},
    "near_duplicate": {"version": 1, "radius": 6},
    "nsfw": {"off": "no classifier: <script>window.fired=9</script>"},
    "script_of_mine": {"version": 1, "of": "tag"},
}


def table(rows: int, *, seed: int = 0, hostile: bool = True) -> pa.Table:
    """Rows as curation would judge them, by scores that are drawn."""
    draw = np.random.default_rng(seed)
    readable = draw.random(rows) > 0.04
    score: dict[str, Any] = {
        "broken": readable.astype(float),
        "file_size": np.round(np.exp(draw.normal(9.5, 1.2, rows))),
        "clarity": np.where(readable, draw.normal(4, 1.2, rows), np.nan),
        "contrast_of_mine": np.where(readable, np.round(draw.random(rows), 2), np.nan),
    }
    passes = {
        "broken": readable,
        "file_size": score["file_size"] >= 2048,
        "clarity": ~(score["clarity"] < 2.3),
        "contrast_of_mine": ~((score["contrast_of_mine"] < 0.2) | (score["contrast_of_mine"] > 0.9)),
    }
    judged = {name: ~np.isnan(score[name]) for name in score}
    first_source = draw.random(rows) < 0.7
    judged["clarity"] &= first_source
    passes["clarity"] |= ~first_source
    captions, of_captions, words = _captions(draw, first_source, hostile)
    score |= of_captions
    judged |= {name: words[name] != NOT_JUDGED for name in words}
    passes |= {name: words[name] != REFUSED for name in words}
    left = np.logical_and.reduce([passes[name] for name in passes])
    near = np.where(left, draw.integers(0, 40, rows).astype(float), np.nan)
    score["near_duplicate"] = near
    passes["near_duplicate"] = ~((near <= 6) & (draw.random(rows) < 0.5))
    judged["near_duplicate"] = ~np.isnan(near)
    order = [name for name, said in OPERATORS.items() if name in passes]
    failed = np.stack([~passes[name] for name in order])
    first = np.where(failed.any(axis=0), failed.argmax(axis=0), -1)
    keys = [f"shard-{row // 100:05d}/{row:08d}" for row in range(rows)]
    if hostile:
        keys[1] = f"shard-00000/{HOSTILE[1]}"
    keys.sort()
    columns: dict[str, Any] = {
        "key": keys,
        "source": np.where(first_source, FIRST, HOSTILE[0] if hostile else "scans").tolist(),
        "shard": [f"shard-{row // 100:05d}.tar" for row in range(rows)],
        "member": [f"{row:08d}.png" for row in range(rows)],
        "offset": np.zeros(rows, np.int64),
        "size": score["file_size"].astype(np.int64),
        "width": np.where(readable, draw.integers(256, 900, rows), 0),
        "height": np.where(readable, draw.integers(256, 900, rows), 0),
        "sha256": [""] * rows,
        "phash": np.arange(rows, dtype=np.uint64),
        "captions": captions,
        "references": [[]] * rows,
        "cluster": keys,
        "tag.script_of_mine": [_tag(row, hostile) for row in range(rows)],
        "score.nsfw": [None] * rows,
        "verdict.nsfw": [None] * rows,
        "reason.nsfw": [""] * rows,
        "kept": first < 0,
        "dropped_by": ["" if one < 0 else order[one] for one in first],
        "reason": ["" if one < 0 else (HOSTILE[3] if hostile else "no") for one in first],
    }
    for name in order:
        columns[f"score.{name}"] = _nullable(score[name])
        columns[f"verdict.{name}"] = [
            bool(ok) if known else None for ok, known in zip(passes[name], judged[name], strict=True)
        ]
        columns[f"reason.{name}"] = ["" if ok else "no" for ok in passes[name]]
    shape = schema(OPERATORS)
    return pa.table([columns[name] for name in shape.names], schema=shape)


def _tag(row: int, hostile: bool) -> str:
    return HOSTILE[4] if hostile and row % 11 == 0 else ("english", "chinese", "")[row % 3]


def _nullable(values: Any) -> Any:
    if isinstance(values, list):
        return [[None if np.isnan(one) else one for one in row] for row in values]
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def _captions(
    draw: np.random.Generator, first_source: np.ndarray, hostile: bool
) -> tuple[list[list[dict[str, Any]]], dict[str, list[list[float]]], dict[str, np.ndarray]]:
    """Captions of each row, none in some; the scores of the two operators that judge them; what those say of it."""
    captions: list[list[dict[str, Any]]] = []
    scores: dict[str, list[list[float]]] = {"token_length": [], "likeness_of_mine": []}
    said = {name: np.full(len(first_source), NOT_JUDGED) for name in scores}
    for row, first in enumerate(first_source):
        splits = _SPLITS[draw.integers(0, len(_SPLITS))]
        text = HOSTILE[row % len(HOSTILE)] if hostile else "a caption"
        tokens = draw.integers(4, 80, len(splits)).tolist()
        alike = np.where(draw.random(len(splits)) < 0.2, np.nan, draw.random(len(splits))).tolist()
        mine = [
            {"split": split, "text": text, "tokens": length, "kept": True, "reason": ""}
            for split, length in zip(splits, tokens, strict=True)
        ]
        fails = {"token_length": [length > 60 for length in tokens], "likeness_of_mine": [one < 0.1 for one in alike]}
        for name, bad in fails.items():
            before = any(one["kept"] for one in mine)
            if not before or (name in EXEMPT and not first):
                continue
            for one in (one for one, wrong in zip(mine, bad, strict=True) if wrong and one["kept"]):
                one |= {"kept": False, "reason": f"{name}: no"}
            said[name][row] = KEPT if any(one["kept"] for one in mine) else REFUSED
        captions.append(mine)
        scores["token_length"].append([float(length) for length in tokens])
        scores["likeness_of_mine"].append(alike)
    return captions, scores, said


def index(path: Path, made: pa.Table) -> Path:
    """An index at `path` with one generation of `made`."""
    write_generation(path, made, tokenizer="none", operators=OPERATORS)
    return path


def pictures(folder: Path, made: pa.Table) -> pa.Table:
    """`made` with its pictures in tars at `folder`: a colour for each row, the broken ones left out."""
    rows = made.to_pylist()
    for shard in sorted({row["shard"] for row in rows}):
        with tarfile.open(folder / shard, "w") as tar:
            for row in (row for row in rows if row["shard"] == shard and row["height"]):
                raw = io.BytesIO()
                Image.new("RGB", (40, 30), (hash_of(row["key"]), 90, 140)).save(raw, "PNG")
                header = tarfile.TarInfo(row["member"])
                header.size = raw.tell()
                row["offset"], row["size"] = tar.offset + 512, header.size
                tar.addfile(header, io.BytesIO(raw.getvalue()))
                whole = folder / "one.png"
                whole.write_bytes(raw.getvalue())
                row["sha256"] = hash_file(whole)
    return pa.Table.from_pylist(rows, schema=made.schema)


def hash_of(key: str) -> int:
    """A level of red for a sample."""
    return sum(key.encode()) % 256
