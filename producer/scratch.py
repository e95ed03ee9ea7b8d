"""Arrays and tables of any size, kept in files of a folder and mapped into memory."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc


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
    for first in range(0, number, _PIECE):
        column.add(np.full(min(_PIECE, number - first), value, dtype))
    return column.whole()


_PIECE = 1 << 20


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


def mapped(path: Path) -> pa.Table:
    """The table in the file at `path`, its bytes in the page cache alone."""
    return ipc.open_file(pa.memory_map(str(path))).read_all()


def write_table(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> pa.Table:
    """`tables` as one, mapped from a new file at `path`."""
    with ipc.new_file(path, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))
    return mapped(path)
