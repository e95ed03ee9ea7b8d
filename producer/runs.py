"""Rows of many shards in the order of their keys: a sorted file a shard, and files read side by side.

Only a few thousand rows of the files that overlap are in memory, whatever there is in all. Keys become unique here: two
shards may spell the same one (a/b.tar, and b/ in a.tar).
"""

from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc

# Rows read of a file at a time; about a kilobyte each.
_BATCH = 4096
# Files read side by side at most; where more overlap, some are merged first.
_SIDES = 64
_PLACE = ("key", "shard", "member", "offset")
_ORDER = [(name, "ascending") for name in _PLACE]

Place = tuple[str, str, str, int]


class Run(NamedTuple):
    """A file of rows sorted by key, then place; `first` and `last` are its keys' bounds."""

    path: Path
    first: str
    last: str


def write_run(table: pa.Table, path: Path) -> Run | None:
    """Write `table`, sorted; None if it has no rows."""
    return write_sorted([table.sort_by(_ORDER)], path)


def write_sorted(tables: Iterator[pa.Table] | Sequence[pa.Table], path: Path) -> Run | None:
    """Write `tables`, whose rows are sorted, one after the other."""
    first = last = ""
    writer: ipc.RecordBatchFileWriter | None = None
    for table in tables:
        if not table.num_rows:
            continue
        if writer is None:
            first = table["key"][0].as_py()
            writer = ipc.new_file(path, table.schema, options=ipc.IpcWriteOptions(compression="lz4"))
        last = table["key"][-1].as_py()
        writer.write_table(table.combine_chunks(), max_chunksize=_BATCH)
    if writer is None:
        return None
    writer.close()
    return Run(path, first, last)


def read_in_order(runs: Sequence[Run], folder: Path) -> Iterator[pa.Table]:
    """All rows of `runs` by key, in tables of any size; `folder` is for scratch files."""
    few = _few(sorted(runs, key=lambda run: (run.first, run.path.name)), folder)
    few = _renamed(few, folder)
    return _side_by_side(few)


class _Cursor:
    """The rows of a run that are still to come, a batch of them in memory."""

    def __init__(self, run: Run, columns: Sequence[str] | None) -> None:
        names = ipc.open_file(pa.memory_map(str(run.path))).schema.names
        options = ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns or names])
        self._file = ipc.open_file(pa.memory_map(str(run.path)), options=options)
        self._next = 0
        self.rows = self._load()

    def _load(self) -> pa.Table:
        batch = self._file.get_batch(self._next)
        self._next += 1
        return pa.Table.from_batches([batch])

    @property
    def more(self) -> bool:
        """Whether there are rows after those in memory."""
        return self._next < self._file.num_record_batches

    @property
    def end(self) -> str:
        """The last key in memory."""
        return str(self.rows["key"][-1].as_py())

    def take(self, bound: str | None) -> pa.Table:
        """The rows up to key `bound`, which are gone then; all in memory without one."""
        number = self.rows.num_rows
        if bound is not None and self.end > bound:
            number = pc.sum(pc.less_equal(self.rows["key"], bound)).as_py() or 0
        taken, self.rows = self.rows.slice(0, number), self.rows.slice(number)
        if not self.rows.num_rows and self.more:
            self.rows = self._load()
        return taken


def _side_by_side(runs: Sequence[Run], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """All rows of `runs`, which are sorted by their first key, in order."""
    waiting, open_ = list(reversed(runs)), list[_Cursor]()
    while waiting or open_:
        if not open_:
            open_.append(_Cursor(waiting.pop(), columns))
        # Up to here nothing can come from what is not in memory.
        bound = min((one.end for one in open_ if one.more), default=None)
        while waiting and (bound is None or waiting[-1].first <= bound):
            if bound is None and waiting[-1].first > max(one.end for one in open_):
                bound = max(one.end for one in open_)
                break
            open_.append(_Cursor(waiting.pop(), columns))
            bound = min((one.end for one in open_ if one.more), default=None)
        taken = pa.concat_tables([one.take(bound) for one in open_])
        open_ = [one for one in open_ if one.rows.num_rows]
        if taken.num_rows:
            yield taken.sort_by(_ORDER)


def _few(runs: list[Run], folder: Path) -> list[Run]:
    """The same rows in files of which no more than _SIDES overlap anywhere."""
    while len(runs) > _SIDES and _overlap(runs) > _SIDES:
        merged = []
        for first in range(0, len(runs), _SIDES):
            group = runs[first : first + _SIDES]
            run = write_sorted(_side_by_side(group), folder / f"merged-{group[0].path.stem}-{len(runs)}.arrow")
            assert run
            merged.append(run)
            for one in group:
                one.path.unlink()
        runs = merged
    return runs


def _overlap(runs: list[Run]) -> int:
    """How many runs hold the same key's place at most."""
    edges = sorted(chain(((run.first, 0) for run in runs), ((run.last, 1) for run in runs)))
    most = now = 0
    for _, leaves in edges:
        now += -1 if leaves else 1
        most = max(most, now)
    return most


def _renamed(runs: list[Run], folder: Path) -> list[Run]:
    """The same rows, the later of equal keys numbered: key~2, key~3, and on past names that are taken."""
    names = _names(runs, _repeated(runs))
    if not names:
        return runs
    bases = pa.array(sorted({place[0] for place in names}))
    kept, moved = [], list[pa.Table]()
    for number, run in enumerate(runs):
        left = write_sorted(_told_apart(run, names, bases, moved), folder / f"told-apart-{number}.arrow")
        run.path.unlink()
        kept += [left] if left else []
    added = write_run(pa.concat_tables(moved), folder / "told-apart.arrow")
    assert added
    return sorted([*kept, added], key=lambda run: (run.first, run.path.name))


def _repeated(runs: list[Run]) -> list[Place]:
    """The places whose key an earlier one has."""
    found: list[Place] = []
    last = None
    for table in _side_by_side(runs, _PLACE):
        keys = table["key"].combine_chunks()
        same = pc.equal(keys, pa.concat_arrays([pa.array([last], pa.string()), keys[:-1]]))
        found += _places(table.filter(pc.fill_null(same, False)))
        last = keys[-1].as_py()
    return found


def _names(runs: list[Run], repeated: list[Place]) -> dict[Place, str]:
    """A key of its own for each of `repeated`."""
    if not repeated:
        return {}
    bases = {place[0] for place in repeated}
    taken = set()
    for table in _side_by_side(runs, _PLACE):
        # Only what looks like a numbered one of these can be in the way.
        numbered = table["key"].filter(pc.match_substring_regex(table["key"], r"~[0-9]+$"))
        taken |= {key for key in numbered.to_pylist() if key.rpartition("~")[0] in bases}
    names = {}
    for place in repeated:
        names[place] = next(name for n in count(2) if (name := f"{place[0]}~{n}") not in taken)
        taken.add(names[place])
    return names


def _told_apart(run: Run, names: dict[Place, str], bases: pa.Array, moved: list[pa.Table]) -> Iterator[pa.Table]:
    """The rows of `run` that keep their key; the others, renamed, are added to `moved`."""
    cursor = _Cursor(run, None)
    while cursor.rows.num_rows:
        table = cursor.take(None)
        if pc.any(pc.is_in(table["key"], bases)).as_py():
            new = pa.array([names.get(place) for place in _places(table)], pa.string())
            moved.append(table.set_column(0, table.schema.field(0), new).filter(pc.is_valid(new)))
            table = table.filter(pc.is_null(new))
        yield table


def _places(table: pa.Table) -> list[Place]:
    return list(zip(*(table[name].to_pylist() for name in _PLACE), strict=True))
