"""What came into a curation and what became of it, counted while it is written."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from producer.annotate.join import TAGS
from producer.api.bucket import Bucket, bucket, nearest
from producer.operator.broken import Broken
from producer.operator.caption import Caption
from producer.operator.judgement import FAILED
from producer.operator.stage import Stage

# A tag that every annotated sample has.
_ANNOTATED = f"tag.{TAGS[0]}"
# What is wrong with captions of a sample, also where it has others and stays.
_FAULTS = f"reason.{Caption.name}"


@dataclass(frozen=True)
class Funnel:
    """What came in and what became of it: seen = kept + the sum of dropped + the sum of failed."""

    generation: str  # id of the index generation
    seen: int
    kept: int
    dropped: dict[str, int]  # operator -> samples it dropped, in the order of operators
    example: dict[str, str]  # operator -> one "key: reason" of those it dropped, or else failed on
    buckets: dict[str, int]  # kept samples by bucket; empty ones are left out
    off: dict[str, str]  # operator -> why it did not judge
    shards: int
    scored: int  # shards scored in this run, the others' scores were there
    failed: dict[str, int] = field(default_factory=dict)  # operator -> samples it raised on; those without any left out
    annotated: int | None = None  # kept samples that annotation speaks of, None where there is no annotation
    faulty: int = 0  # kept samples beside which lies a caption that cannot be used
    faulty_example: str = ""  # "key: reason" of one


class Tally:
    """Counts of an index's rows."""

    def __init__(self, resolutions: Sequence[int], aspects: Sequence[str]) -> None:
        self._sizes = {size: tuple(bucket(size, aspect) for aspect in aspects) for size in sorted(resolutions)}
        self._buckets: Counter[Bucket] = Counter()
        self.seen = self.kept = self.annotated = self.faulty = 0
        self._faulty_example = ""
        self.dropped: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()  # source -> samples
        self.broken: Counter[str] = Counter()  # source -> samples without a readable picture
        self.broken_example: dict[str, str] = {}  # source -> one "key: reason" of those
        self.failed: Counter[str] = Counter()
        self._example: dict[str, str] = {}
        self._failed_example: dict[str, str] = {}

    def add(self, rows: pa.Table) -> None:
        """Count `rows`, which have key, source, kept, dropped_by and reason; sizes in pixels for buckets."""
        self.seen += rows.num_rows
        kept = rows.filter(rows["kept"])
        self.kept += kept.num_rows
        if _ANNOTATED in rows.column_names:
            self.annotated += pc.sum(pc.not_equal(kept[_ANNOTATED], "")).as_py() or 0
        if _FAULTS in rows.column_names:
            faulty = kept.filter(pc.not_equal(kept[_FAULTS], ""))
            self.faulty += faulty.num_rows
            if faulty.num_rows and not self._faulty_example:
                self._faulty_example = f"{faulty['key'][0]}: {faulty[_FAULTS][0]}"
        gone = rows.filter(pc.invert(rows["kept"]))
        is_failed = pc.starts_with(gone["reason"], FAILED)
        said_no = gone.filter(pc.invert(is_failed))
        self._count(said_no, self.dropped, self._example)
        _add(self.sources, rows["source"])
        broken = said_no.filter(pc.equal(said_no["dropped_by"], Broken.name))
        _add(self.broken, broken["source"])
        for name in self.broken.keys() - self.broken_example.keys():
            self.broken_example[name] = _first(broken, "source", name)
        self._count(gone.filter(is_failed), self.failed, self._failed_example)
        sizes, counts = np.unique(
            np.stack([np.asarray(kept["height"], np.int64), np.asarray(kept["width"], np.int64)], axis=1),
            axis=0,
            return_counts=True,
        )
        for (height, width), number in zip(sizes.tolist(), counts.tolist(), strict=True):
            self._buckets[self._bucket(height, width)] += number

    def _count(self, rows: pa.Table, counts: Counter[str], example: dict[str, str]) -> None:
        for name in _add(counts, rows["dropped_by"]):
            if name not in example:
                example[name] = _first(rows, "dropped_by", name)

    def _bucket(self, height: int, width: int) -> Bucket:
        """The nearest in aspect of the largest resolution that is not above the picture's own."""
        fits = [size for size in self._sizes if size * size <= height * width] or [min(self._sizes)]
        return nearest(height, width, self._sizes[fits[-1]])

    @property
    def example(self) -> dict[str, str]:
        """One "key: reason" of each operator that dropped or failed on any."""
        return self._failed_example | self._example

    def lost(self) -> str:
        """What became of those not kept, in words."""
        said = [f"{number} by {name} ({self.example[name]})" for name, number in self.dropped.items()]
        said += [f"{number} failed by {name} ({self.example[name]})" for name, number in self.failed.items()]
        return ", ".join(said)

    def funnel(self, generation: str, stage: Stage, *, shards: int, scored: int) -> Funnel:
        """The counts, for people."""
        buckets = self._buckets
        return Funnel(
            generation=generation,
            seen=self.seen,
            kept=self.kept,
            dropped={name: self.dropped[name] for name in stage.names if name not in stage.off},
            example=self.example,
            buckets={str(one): buckets[one] for of_size in self._sizes.values() for one in of_size if buckets[one]},
            off=stage.off,
            shards=shards,
            scored=scored,
            failed=dict(self.failed),
            annotated=self.annotated if stage.annotated else None,
            faulty=self.faulty,
            faulty_example=self._faulty_example,
        )


def _add(counts: Counter[str], column: pa.ChunkedArray) -> list[str]:
    """Add to `counts` how often each value of `column` is there; the values."""
    found = {one["values"]: one["counts"] for one in pc.value_counts(column).to_pylist()}
    counts.update(found)
    return list(found)


def _first(rows: pa.Table, column: str, value: str) -> str:
    """ "key: reason" of the first of `rows` with `value` in `column`."""
    first = rows.slice(pc.index(rows[column], value).as_py(), 1).to_pylist()[0]
    return f"{first['key']}: {first['reason']}"
