"""What can only be said of the whole set: duplicates, and whatever operators look at tables. And the index's rows.

Rows come in the order of their keys and go into a file that is mapped into memory; what comparisons need of them goes
into arrays that are mapped too, and is worked on in pieces, so that memory is bounded whatever the number of rows. Each
operator sees only what all before it keep, so that a duplicate is never dropped for a sample that is dropped itself.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from producer.clusters import Age
from producer.crowd import Crowd
from producer.index import ROW_GROUP, schema
from producer.judging import COMPARED, judged_schema
from producer.neighbours import Hashes
from producer.older import Older
from producer.operator.judgement import (
    CaptionSetOperator,
    Facts,
    Judgements,
    SetOperator,
    TableOperator,
    TableTagger,
    what_failed,
)
from producer.operator.stage import Stage
from producer.scratch import Column, Space, Strings, Tables, filled, pieces, spread, write_table
from producer.source.reader import SourceConfig

_FACTS = {
    "left": np.bool_,  # kept so far
    "comparable": np.bool_,
    "source": np.int16,  # number among the further sources, -1 for the first
    "generation": np.int64,
    "pixels": np.int64,
    "clarity": np.float64,
    "sha256_high": np.uint64,
    "sha256_low": np.uint64,
    "phash": np.uint64,
    **dict.fromkeys(COMPARED, np.uint64),
}

# Errors that say nothing of who raised them; a plain ValueError is another, such as numpy's of shapes.
_UNNAMED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    pa.ArrowException,
)


class WholeError(ValueError):
    """An operator that looks at the whole set raised."""


@dataclass
class _Said:
    """What one operator says of every row."""

    score: np.ndarray  # float64, NaN where there is none
    verdict: np.ndarray  # int8: 1, 0, -1 where not judged
    reasons: Callable[[slice, np.ndarray], pa.Array]  # of rows, of which it drops those where the bool is set


class Whole:
    """All rows of a set, judged one by one, and what is then said of all of them; files lie in the folder `scratch`."""

    def __init__(self, stage: Stage, source: SourceConfig, older: Older, scratch: Path) -> None:
        self._stage, self._source, self._older, self._scratch = stage, source, older, scratch
        self._space = Space(scratch)
        self._shape = schema({name: {"of": kind} for name, kind in stage.kinds.items()})
        self._rows = Tables(scratch / "rows.arrow", judged_schema(stage), ROW_GROUP)
        self._others = sorted(source.also)
        self._columns = {name: Column(scratch / f"{name}.bin", dtype) for name, dtype in _FACTS.items()}
        self._said: dict[str, _Said] = {}
        self._crowds: dict[str, Crowd] = {}
        self._tags: dict[str, Strings] = {}

    def add(self, rows: pa.Table) -> None:
        """Take rows of `judged_schema` whose keys come after all before them."""
        for batch in self._rows.add(rows):
            self._note(batch)

    def _note(self, batch: pa.Table) -> None:
        """Keep of `batch` what comparisons need."""
        digests = pc.utf8_slice_codeunits(pc.utf8_rpad(batch["sha256"], 32, "0"), 0, 32).to_pylist()
        words = np.frombuffer(bytes.fromhex("".join(digests)), ">u8").reshape(-1, 2)
        clarity = batch["score.clarity"] if "score.clarity" in batch.column_names else None
        values = {
            "left": np.asarray(batch["kept"]),
            # An edit is its references and words too: many start from one picture, and differ little in their end.
            "comparable": np.asarray(pc.list_value_length(batch["references"])) == 0,
            "source": np.asarray(pc.fill_null(pc.index_in(batch["source"], pa.array(self._others, pa.string())), -1)),
            "generation": self._older.first_kept(batch["key"].combine_chunks(), batch["sha256"].combine_chunks()),
            "pixels": np.asarray(batch["width"], np.int64) * np.asarray(batch["height"], np.int64),
            "clarity": np.full(len(batch), np.nan) if clarity is None else np.asarray(clarity, np.float64),
            "sha256_high": words[:, 0],
            "sha256_low": words[:, 1],
            **{name: np.asarray(batch[name]) for name in ("phash", *COMPARED)},
        }
        for name, column in self._columns.items():
            column.add(values[name])

    def decide(self) -> None:
        """Ask the operators that look at the whole set, one after the other. WholeError where one raises."""
        for batch in self._rows.end():
            self._note(batch)
        self._batches = self._rows.batches()
        facts = {name: column.whole() for name, column in self._columns.items()}
        self._left, self._origin = facts["left"], facts["source"]
        self._cluster = self._space.numbers(len(self._left))
        for one in self._stage.whole:
            with _named(one.name):
                self._compare(one, facts)
        for crowd in self._stage.crowds:
            with _named(crowd.name):
                self._compare_captions(crowd, facts["generation"])
        for table in self._stage.tables:
            with _named(table.name):
                self._look(table)

    def _compare(self, one: SetOperator, facts: dict[str, np.ndarray]) -> None:
        asked = self._asked(one.name)
        for part in pieces(len(asked)):
            asked[part] &= facts["comparable"][part]
        rows = self._space.where(asked)
        found = one.cluster(self._facts(rows, facts))
        of = self._space.numbers(len(asked))
        prefix = found.reason

        def reasons(rows: slice, dropped: np.ndarray) -> pa.Array:
            return spread(dropped, pc.binary_join_element_wise(prefix, self._keys(of[rows][dropped]), " "))

        said = self._say(one.name, reasons)
        for part in pieces(len(rows)):
            row, like = rows[part], rows[found.representative[part]]
            of[row] = like
            said.score[row] = found.score[part]
            said.verdict[row] = self._left[row] = like == row
        for part in pieces(len(of)):
            self._cluster[part] = of[self._cluster[part]]

    def _facts(self, rows: np.ndarray, facts: dict[str, np.ndarray]) -> Facts:
        """What is compared of `rows`."""
        mine = {name: self._space.take(facts[name], rows) for name in (*Age._fields, *Hashes._fields)}
        sha256 = self._space.empty(2 * len(rows), np.uint64).reshape(-1, 2)
        for part in pieces(len(rows)):
            for place, name in enumerate(("sha256_high", "sha256_low")):
                sha256[part, place] = facts[name][rows[part]]
        age, hashes = Age(*(mine[name] for name in Age._fields)), Hashes(*(mine[name] for name in Hashes._fields))
        return Facts(age, sha256, hashes, self._space)

    def _compare_captions(self, one: CaptionSetOperator, generation: np.ndarray) -> None:
        known = ((start, self._known(start, batch, ["captions"])) for start, batch in self._walk())
        # Mapped still: to combine even one chunk would copy it.
        batches = [(start, table["captions"].chunk(0)) for start, table in known]
        crowd = Crowd(one, batches, self._scratch, len(self._left))
        crowd.decide(self._asked(one.name), generation)
        self._crowds[one.name] = crowd
        self._said[one.name] = _Said(
            self._filled(f"score.{one.name}", np.float64, np.nan),
            crowd.verdict,
            lambda rows, dropped: spread(dropped, crowd.reason(rows.start + np.flatnonzero(dropped))),
        )
        for part in pieces(len(self._left)):
            self._left[part] &= crowd.verdict[part] != 0

    def _look(self, one: TableOperator | TableTagger) -> None:
        asked = self._asked(one.name)
        rows = self._space.where(asked)
        shape = self._columns_for(one)
        table = write_table(self._scratch / f"seen.{one.name}.arrow", shape, self._seen(asked, shape.names))
        if hasattr(one, "tag_table"):
            self._tag(one.name, rows, one.tag_table(table, self._space))
        else:
            self._hear(one.name, rows, one.judge_table(table, self._space))

    def _columns_for(self, one: TableOperator | TableTagger) -> pa.Schema:
        """What there is by now of the columns that `one` asks for."""
        later = {name for table in self._stage.tables for name in _made(table)} - {
            name for judged in (*self._said, *self._tags) for name in (f"score.{judged}", f"tag.{judged}")
        }
        there = set(self._shape.names) - later
        names = dict.fromkeys((*one.needs, *(name for name in getattr(one, "may", ()) if name in there)))
        return pa.schema([self._shape.field(name) for name in names])

    def _tag(self, name: str, rows: np.ndarray, said: Iterable[Sequence[str]]) -> None:
        mine = self._tags[name] = Strings(self._scratch / f"tag.{name}")
        for row, tags in _in_turn(name, rows, said):
            mine.add(row, pa.array(tags, pa.string()))
        mine.end()

    def _hear(self, name: str, rows: np.ndarray, said: Iterable[Judgements]) -> None:
        why = Strings(self._scratch / f"reason.{name}")
        mine = self._say(name, lambda rows, dropped: why.of(rows))
        for row, judged in _in_turn(name, rows, said):
            dropped = np.asarray(judged.verdict) == 0
            mine.score[row], mine.verdict[row] = judged.score, judged.verdict
            self._left[row[dropped]] = False
            why.add(row[dropped], judged.reason.filter(pa.array(dropped)))
        why.end()

    def _asked(self, name: str) -> np.ndarray:
        """bool: the rows that operator `name` is asked about."""
        exempt = [self._others.index(one) for one in self._source.exempt(name)]
        asked = self._space.empty(len(self._left), np.bool_)
        for part in pieces(len(asked)):
            asked[part] = self._left[part] & ~np.isin(self._origin[part], exempt)
        return asked

    def _seen(self, asked: np.ndarray, names: Sequence[str]) -> Iterator[pa.Table]:
        for start, batch in self._walk():
            yield self._known(start, batch, names).filter(pa.array(asked[start : start + batch.num_rows]))

    def _say(self, name: str, reasons: Callable[[slice, np.ndarray], pa.Array]) -> _Said:
        score, verdict = self._filled(f"score.{name}", np.float64, np.nan), self._filled(f"verdict.{name}", np.int8, -1)
        self._said[name] = _Said(score, verdict, reasons)
        return self._said[name]

    def _filled(self, name: str, dtype: type, value: float) -> np.ndarray:
        return filled(self._scratch / f"said.{name}.bin", len(self._left), dtype, value)

    def tables(self) -> Iterator[pa.Table]:
        """The index's rows, ROW_GROUP at a time; after `decide`."""
        for start, batch in self._walk():
            yield self._known(start, batch, self._shape.names)

    def _walk(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        start = 0
        for batch in self._batches:
            yield start, batch
            start += batch.num_rows

    def _known(self, start: int, batch: pa.RecordBatch, names: Sequence[str]) -> pa.Table:
        """What is known by now of the rows in `batch`, in the index's columns `names`."""
        rows = slice(start, start + batch.num_rows)
        columns: dict[str, pa.Array] = {name: batch.column(name) for name in batch.schema.names}
        columns["cluster"] = self._keys(self._cluster[rows])
        for name, tagged in self._tags.items():
            columns[f"tag.{name}"] = tagged.of(rows)
        for name, crowd in self._crowds.items():
            columns["captions"], columns[f"score.{name}"] = crowd.captions(start // ROW_GROUP, columns["captions"])
        for name, said in self._said.items():
            score, verdict = np.asarray(said.score[rows]), np.asarray(said.verdict[rows])
            gone = verdict == 0
            dropped, reasons = pa.array(gone), said.reasons(rows, gone)
            if name not in self._crowds:
                columns[f"score.{name}"] = pa.array(score, mask=np.isnan(score))
            columns[f"verdict.{name}"] = pa.array(verdict == 1, mask=verdict < 0)
            columns[f"reason.{name}"] = reasons
            # Judged at all, it was kept by all before.
            columns["kept"] = pc.and_(columns["kept"], pc.invert(dropped))
            columns["dropped_by"] = pc.if_else(dropped, name, columns["dropped_by"])
            columns["reason"] = pc.if_else(dropped, reasons, columns["reason"])
        shape = pa.schema([self._shape.field(name) for name in names])
        return pa.table([columns[name] for name in shape.names], schema=shape)

    def _keys(self, rows: np.ndarray) -> pa.Array:
        """The keys of `rows`."""
        order = np.argsort(rows, kind="stable")
        batch, place = np.divmod(rows[order], ROW_GROUP)
        pieces = [pa.array([], pa.string())]
        for number in np.unique(batch):
            pieces.append(self._batches[number].column("key").take(pa.array(place[batch == number])))
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return pa.concat_arrays(pieces).take(pa.array(back))


def _made(one: TableOperator | TableTagger) -> tuple[str, ...]:
    if hasattr(one, "tag_table"):
        return (f"tag.{one.name}",)
    return f"score.{one.name}", f"verdict.{one.name}", f"reason.{one.name}"


def _in_turn(
    name: str, rows: np.ndarray, said: Iterable[Sequence[str] | Judgements]
) -> Iterator[tuple[np.ndarray, Any]]:
    """What operator `name` says of `rows`, and of which of them. WholeError unless it says as much as there are."""
    done = 0
    for some in said:
        number = len(some.score if isinstance(some, Judgements) else some)
        done += number
        if done <= len(rows):
            yield rows[done - number : done], some
    if done != len(rows):
        raise WholeError(f"operators.{name}: it says something of {done} rows, and was asked about {len(rows)}")


@contextmanager
def _named(name: str) -> Iterator[None]:
    """An error inside names the operator; those that say more about themselves stay as they are."""
    try:
        yield
    except (*_UNNAMED, ValueError) as error:
        # Another ValueError with a name of its own says which setting or file is wrong.
        if not isinstance(error, _UNNAMED) and type(error) is not ValueError:
            raise
        raise WholeError(f"operators.{name}: {what_failed(error)}") from error
