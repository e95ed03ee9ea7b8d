"""Arrays and tables of any size, kept in files of a folder and mapped into memory.

Pages of a mapped file are the kernel's to write and drop, so memory is bounded whatever the set's size where arrays of
its length are only ever worked on in pieces.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc

# Rows worked on at a time: some ten arrays of 8 MB.
PIECE = 1 << 20
# Bytes up to which an array is not worth a file.
_SMALL = 1 << 20


def pieces(stop: int, start: int = 0) -> Iterator[slice]:
    """`start` to `stop` in slices of PIECE, the last one smaller."""
    for first in range(start, stop, PIECE):
        yield slice(first, min(first + PIECE, stop))


def numbers(part: slice) -> np.ndarray:
    """The places in `part`, int64."""
    return np.arange(part.start, part.stop)


class Space:
    """Room for arrays as long as the set: in nameless files of `folder`, gone with the array; without one in memory.

    OSError where the folder is full.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def empty(self, number: int, dtype: Any) -> np.ndarray:
        """An array [number] of anything."""
        size = number * np.dtype(dtype).itemsize
        if self._folder is None or size <= _SMALL:
            return np.empty(number, dtype)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            # A hole in a mapped file would end the process where the disk is full.
            os.posix_fallocate(file.fileno(), 0, size)
            return np.asarray(np.memmap(file, dtype, mode="r+"))

    def filled(self, number: int, dtype: Any, value: float) -> np.ndarray:
        """`number` times `value`."""
        found = self.empty(number, dtype)
        found.fill(value)
        return found

    def numbers(self, number: int) -> np.ndarray:
        """0 to `number`, int64."""
        found = self.empty(number, np.int64)
        for part in pieces(number):
            found[part] = numbers(part)
        return found

    def where(self, flags: np.ndarray) -> np.ndarray:
        """The places where `flags` are set, int64."""
        found = self.empty(sum(int(np.count_nonzero(flags[part])) for part in pieces(len(flags))), np.int64)
        done = 0
        for part in pieces(len(flags)):
            some = part.start + np.flatnonzero(flags[part])
            found[done : done + len(some)] = some
            done += len(some)
        return found

    def take(self, values: np.ndarray, places: np.ndarray) -> np.ndarray:
        """`values` at `places`."""
        found = self.empty(len(places), values.dtype)
        for part in pieces(len(places)):
            found[part] = values[places[part]]
        return found

    def reals(self, column: pa.ChunkedArray) -> np.ndarray:
        """A table's `column` as float64, NaN where it has nothing."""
        found = self.empty(len(column), np.float64)
        for part in pieces(len(column)):
            found[part] = column.slice(part.start, part.stop - part.start).to_numpy()
        return found


MEMORY = Space()


class Column:
    """An array written piece by piece, then mapped."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self._path, self._dtype = path, np.dtype(dtype)
        self._file = path.open("wb", buffering=1 << 20)

    def add(self, values: np.ndarray) -> None:
        """Append `values`."""
        np.ascontiguousarray(values, self._dtype).tofile(self._file)

    def whole(self) -> np.ndarray:
        """All values; nothing can be added any more."""
        self._file.close()
        return _mapped(self._path, self._dtype)


def filled(path: Path, number: int, dtype: Any, value: float) -> np.ndarray:
    """`number` times `value`, mapped from a new file at `path`."""
    column = Column(path, dtype)
    for part in pieces(number):
        column.add(np.full(part.stop - part.start, value, dtype))
    return column.whole()


def _mapped(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, mode="r+") if path.stat().st_size else np.zeros(0, dtype)


class Tables:
    """A table in batches of `rows`, the last one smaller, mapped from a file once it is whole."""

    def __init__(self, path: Path, schema: pa.Schema, rows: int) -> None:
        self._path, self._rows = path, rows
        self._writer = ipc.new_file(path, schema)
        self._held: list[pa.Table] = []
        self._schema = schema

    def add(self, table: pa.Table) -> Iterator[pa.Table]:
        """Append `table`, and give every full batch as it is written."""
        self._held.append(table)
        while sum(one.num_rows for one in self._held) >= self._rows:
            held = pa.concat_tables(self._held)
            self._held = [held.slice(self._rows)]
            yield self._write(held.slice(0, self._rows))

    def end(self) -> Iterator[pa.Table]:
        """Write and give what is left."""
        held = pa.concat_tables(self._held) if self._held else self._schema.empty_table()
        if held.num_rows:
            yield self._write(held)
        self._held = []
        self._writer.close()

    def _write(self, table: pa.Table) -> pa.Table:
        self._writer.write_table(table.combine_chunks())
        return table

    def batches(self) -> list[pa.RecordBatch]:
        """What was written, mapped."""
        return mapped(self._path).to_batches()


class Strings:
    """A string for some of a set's rows, written in the order of the rows, then mapped from files at `path`.*."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_suffix(f"{path.suffix}.arrow")
        self._rows = Column(path.with_suffix(f"{path.suffix}.bin"), np.int64)
        self._writer = ipc.new_file(self._path, pa.schema([("text", pa.string())]))

    def add(self, rows: np.ndarray, texts: pa.StringArray) -> None:
        """Append the strings of `rows`, which come after all before them."""
        self._rows.add(rows)
        self._writer.write_batch(pa.record_batch([texts], ["text"]))

    def end(self) -> None:
        """Nothing can be added any more."""
        self._writer.close()
        self._row, self._text = self._rows.whole(), mapped(self._path)["text"]

    def of(self, rows: slice) -> pa.StringArray:
        """The strings of `rows`, "" where there is none."""
        first, last = np.searchsorted(self._row, (rows.start, rows.stop)).tolist()
        there = np.zeros(rows.stop - rows.start, bool)
        there[self._row[first:last] - rows.start] = True
        return spread(there, self._text.slice(first, last - first).combine_chunks())


def spread(there: np.ndarray, texts: pa.StringArray) -> pa.StringArray:
    """`texts` at the places where bool `there` is set, "" at the others."""
    return pc.replace_with_mask(pa.array([""] * len(there), pa.string()), pa.array(there), texts)


def mapped(path: Path) -> pa.Table:
    """The table in the file at `path`, its bytes in the page cache alone."""
    return ipc.open_file(pa.memory_map(str(path))).read_all()


def write_table(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> pa.Table:
    """`tables` as one, mapped from a new file at `path`."""
    with ipc.new_file(path, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))
    return mapped(path)
