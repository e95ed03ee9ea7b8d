"""Index tables made up for tests: real columns, drawn values."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from producer.index import CAPTION, schema

ASPECTS = np.asarray([1, 2 / 3, 3 / 2, 3 / 4, 4 / 3, 9 / 16, 16 / 9, 1 / 3, 3])


def table(
    rows: int,
    *,
    seed: int = 0,
    splits: Sequence[str] = ("raw",),
    side: tuple[int, int] = (300, 1400),
    spread: float = 0.35,
    **columns: Sequence[object] | np.ndarray,
) -> pa.Table:
    """An index of `rows` photographs in nine shapes, judged by one operator, "aesthetic", and all kept.

    Captions have about 140 tokens, `spread` wide on a log scale; `columns` replace what is drawn.
    """
    draw = np.random.default_rng(seed)
    aspect = np.sqrt(draw.choice(ASPECTS, rows) * draw.uniform(0.95, 1.05, rows))
    pixels = draw.integers(*side, rows)
    keys = [f"shard-{row // 100:05d}/{row:08d}" for row in range(rows)]
    values: dict[str, object] = {
        "key": keys,
        "source": ["photos"] * rows,
        "shard": [f"{key.split('/')[0]}.tar" for key in keys],
        "member": [f"{key.split('/')[1]}.jpg" for key in keys],
        "offset": np.arange(rows) * 1000,
        "size": np.full(rows, 1000),
        "width": (pixels * aspect).astype(np.int32),
        "height": (pixels / aspect).astype(np.int32),
        "sha256": keys,
        "phash": np.arange(rows, dtype=np.uint64),
        "captions": captions(draw, rows, splits, spread),
        "references": [[]] * rows,
        "cluster": keys,
        "score.aesthetic": draw.uniform(0, 10, rows),
        "verdict.aesthetic": np.ones(rows, bool),
        "reason.aesthetic": [""] * rows,
        "kept": np.ones(rows, bool),
        "dropped_by": [""] * rows,
        "reason": [""] * rows,
    }
    values |= columns
    return pa.table(values, schema=schema(["aesthetic"]))


def captions(draw: np.random.Generator, rows: int, splits: Sequence[str], spread: float) -> pa.Array:
    """One caption of each split for each row."""
    count = rows * len(splits)
    tokens = np.clip(draw.lognormal(4.9, spread, count), 4, 1000).astype(np.int32)
    each = pa.StructArray.from_arrays(
        [
            pa.array(list(splits) * rows, pa.string()),
            pa.array(["a caption"] * count, pa.string()),
            pa.array(tokens),
            pa.array(np.ones(count, bool)),
            pa.array([""] * count, pa.string()),
        ],
        fields=list(CAPTION),
    )
    return pa.ListArray.from_arrays(pa.array(np.arange(0, count + 1, len(splits)), pa.int32()), each)
