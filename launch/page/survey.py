"""Three passes over an index: every count that the page shows, and which rows it shows of which."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from launch.page.judges import Judge
from launch.page.nearest import Side, sides
from launch.page.rows import Rows, flags, floats, lengths, of_captions
from launch.page.sampled import SALT, Sampled
from launch.page.tally import Histogram, Tally
from launch.page.words import Captions, Split, count
from producer.keyed import of_strings
from producer.operator.judgement import FAILED

# Rows on each side of a line whose pictures are shown, and rows all along the scores, for lines that are moved there.
_BESIDE, _ALONG = 6, 10
# Rows that sliders count with; the page may have room for fewer.
SAMPLED = 20_000
# Different values of a tag that are counted one by one; the rest are "other".
_VALUES = 10_000
OTHER = "(other)"
# Tags that hold more than a class, such as what was read: longer values, or JSON.
DATA, _LONG = "(data)", 64


@dataclass(eq=False)
class Shares:
    """By name: samples in all, and kept ones."""

    all: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)

    def add(self, names: pa.ChunkedArray | pa.Array, kept: np.ndarray) -> None:
        """Count samples by name."""
        _into(self.all, names)
        _into(self.kept, names.filter(pa.array(kept)))


def _into(counter: Counter[str], names: pa.ChunkedArray | pa.Array) -> None:
    for one in pc.value_counts(pc.fill_null(names, "")).to_pylist():
        known = one["values"] in counter or len(counter) < _VALUES
        counter[one["values"] if known else OTHER] += one["counts"]


@dataclass(eq=False)
class Survey:
    """What the passes over the rows found."""

    judges: list[Judge]
    tallies: dict[str, Tally]
    sampled: Sampled
    rows: int = 0
    kept: int = 0
    example: dict[str, str] = field(default_factory=dict)  # operator -> one "key: reason" of those it dropped
    raised: dict[str, str] = field(default_factory=dict)  # operator -> one of those it failed on
    others: Counter[str] = field(default_factory=Counter)  # rows dropped by what is no operator of this index
    splits: dict[str, Split] = field(default_factory=dict)
    sources: Shares = field(default_factory=Shares)
    buckets: Shares = field(default_factory=Shares)
    tags: dict[str, Shares] = field(default_factory=dict)
    sides: dict[str, list[Side]] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    shown: dict[int, dict[str, Any]] = field(default_factory=dict)  # row number -> the row

    @property
    def scored(self) -> list[str]:
        """The judges that have scores."""
        return [one.name for one in self.judges if one.scores]


def survey(rows: Rows, judges: list[Judge], bucket: Callable[[int, int], str]) -> Survey:
    """Look at all of `rows`; `bucket` names the bucket of a picture of a height and a width."""
    tallies = {one.name: Tally(one) for one in judges}
    found = Survey(judges, tallies, Sampled(SAMPLED), tags={j.name: Shares() for j in judges if j.kind == "tag"})
    named = lru_cache(maxsize=1 << 16)(bucket)
    for first, table in rows.batches(_first_columns(judges)):
        _count(found, first, table, named)
    for name in found.scored:
        found.sides[name] = sides(tallies[name], _BESIDE)
        found.histograms[name] = Histogram.of(tallies[name], _flat(found.sampled.table[f"score.{name}"]))
    for first, table in rows.batches(["key", *_judged(judges)]):
        _place(found, first, table)
    wanted = np.unique(np.asarray(_wanted(found), np.int64))
    for first, table in rows.batches(_shown_columns(judges)):
        mine = wanted[(wanted >= first) & (wanted < first + table.num_rows)]
        found.shown |= dict(zip(mine.tolist(), table.take(mine - first).to_pylist(), strict=True))
    return found


def _first_columns(judges: list[Judge]) -> list[str]:
    facts = ["key", "source", "kept", "dropped_by", "reason", "height", "width"]
    captions = [f"captions.list.element.{name}" for name in ("split", "tokens", "kept", "reason")]
    return [*facts, *captions, *_judged(judges)]


def _judged(judges: list[Judge]) -> list[str]:
    scores = [f"{kind}.{one.name}" for one in judges if one.scores for kind in ("score", "verdict")]
    return [_leaf(judges, name) for name in scores] + [f"tag.{one.name}" for one in judges if one.kind == "tag"]


def _leaf(judges: list[Judge], column: str) -> str:
    """How the file's reader wants a column named."""
    of_captions = {f"score.{one.name}" for one in judges if one.kind == "captions"}
    return f"{column}.list.element" if column in of_captions else column


def _shown_columns(judges: list[Judge]) -> list[str]:
    facts = ["key", "source", "shard", "member", "offset", "size", "height", "width", "sha256", "kept", "dropped_by"]
    return [*facts, "reason", "captions", *_judged(judges)]


def _count(found: Survey, first: int, table: pa.Table, bucket: Callable[[int, int], str]) -> None:
    hashes = of_strings(table["key"], SALT)
    kept = flags(table["kept"]) == 1
    found.rows += table.num_rows
    found.kept += int(kept.sum())
    captions = Captions.of(table["captions"])
    failed = ~kept & np.asarray(pc.starts_with(pc.fill_null(table["reason"], ""), FAILED), bool)
    for name in found.scored:
        _judge(found, name, table, captions, failed)
    _drops(found, table, failed)
    count(found.splits, captions, first, hashes)
    found.sources.add(table["source"], kept)
    for name, shares in found.tags.items():
        shares.add(_classes(table[f"tag.{name}"]), kept)
    height, width = (np.asarray(table[name], np.int64) for name in ("height", "width"))
    read = (height > 0) & (width > 0)
    sizes = [bucket(*size) for size in zip(height[read].tolist(), width[read].tolist(), strict=True)]
    found.buckets.add(pa.array(sizes, pa.string()), kept[read])
    table = table.drop_columns([name for name in ("source", "reason", "height", "width") if name in table.column_names])
    table = table.append_column("failed", pa.array(failed))
    found.sampled.add(table.append_column("row", pa.array(first + np.arange(table.num_rows))), hashes)


def _judge(found: Survey, name: str, table: pa.Table, captions: Captions, failed: np.ndarray) -> None:
    tally = found.tallies[name]
    # Of what a judge raised on it has no verdict.
    raised = failed & np.asarray(pc.equal(table["dropped_by"], name), bool)
    verdicts = np.where(raised, -1, flags(table[f"verdict.{name}"]))
    if tally.judge.kind == "captions":
        values = of_captions(table[f"score.{name}"], lengths(table["captions"]))
    else:
        values = floats(table[f"score.{name}"])
    if tally.judge.kind == "captions":
        known = np.where(verdicts[captions.row] < 0, -1, 1)
        verdicts = np.where(captions.kept, known, np.where(captions.refused_by == name, 0, -1))
    if tally.judge.kind != "whole":
        kept = captions.kept if tally.judge.kind == "captions" else True
        tally.spared += int((kept & (verdicts < 0) & ~np.isnan(values)).sum())
    tally.add(values, verdicts)


def _place(found: Survey, first: int, table: pa.Table) -> None:
    """Find where the scores of the rows from `first` on lie: in which bin, and how close to a line."""
    hashes = of_strings(table["key"], SALT)
    for name, histogram in found.histograms.items():
        column = table[f"score.{name}"]
        values = _flat(column)
        counts = lengths(column) if pa.types.is_list(column.type) else np.ones(table.num_rows, np.int64)
        row = np.repeat(np.arange(table.num_rows), counts)
        place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        histogram.add(values)
        for side in found.sides[name]:
            side.add(first + row, place, values, hashes[row])


def _drops(found: Survey, table: pa.Table, failed: np.ndarray) -> None:
    for lost, example in (
        (table.filter(pa.array(~failed)), found.example),
        (table.filter(pa.array(failed)), found.raised),
    ):
        by = lost["dropped_by"]
        for one in pc.value_counts(by.filter(pc.not_equal(by, ""))).to_pylist():
            name = one["values"]
            if name not in found.tallies:
                found.others[name] += one["counts"]
            elif example is found.raised:
                found.tallies[name].failed += one["counts"]
            else:
                found.tallies[name].dropped += one["counts"]
            if name not in example:
                row = pc.index(by, name).as_py()
                example[name] = f"{lost['key'][row]}: {lost['reason'][row]}"


def _classes(tags: pa.ChunkedArray) -> pa.ChunkedArray:
    data = pc.or_(pc.greater(pc.utf8_length(tags), _LONG), pc.match_substring_regex(tags, r"^[\[{]"))
    return pc.if_else(data, DATA, tags)


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return floats(pc.list_flatten(column) if pa.types.is_list(column.type) else column)


def _wanted(found: Survey) -> list[int]:
    """Rows to show: beside lines, along all scores, and captions of every split."""
    rows = [row for of in found.sides.values() for side in of for row in side.rows.tolist()]
    rows += [row for split in found.splits.values() for side in (split.shown, split.refused) for row in side.rows]
    sampled = found.sampled.table
    for name in found.scored:
        column = sampled[f"score.{name}"]
        if pa.types.is_list(column.type):
            continue
        values = floats(column)
        order = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]
        along = order[np.linspace(0, len(order) - 1, _ALONG).astype(int)] if len(order) else order
        rows += np.asarray(sampled["row"])[along].tolist()
    return rows
