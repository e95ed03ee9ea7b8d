"""An index generation read a piece at a time: memory does not grow with the set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from producer.index import IndexFormatError, described, schema

# Rows read at a time: some tens of MB with long captions.
_BATCH = 16384


@dataclass(frozen=True, eq=False)
class Rows:
    """One generation, verified and not yet read."""

    folder: Path
    said: dict[str, Any]  # its generation.json

    @classmethod
    def open(cls, index: Path, generation: str = "latest") -> "Rows":
        """The generation of the index at `index`; IndexFormatError if it is missing, damaged or of another version."""
        folder, said = described(index, generation)
        found, expected = pq.read_schema(folder / "rows.parquet"), schema(said["operators"])
        if not found.equals(expected):
            raise IndexFormatError(
                f"{folder}: has columns {found.names}, expected {expected.names}; curate again with this release"
            )
        if not said["rows"]:
            raise IndexFormatError(f"{folder}: holds no samples; curate a source that has some")
        return cls(folder, said)

    @property
    def operators(self) -> dict[str, Any]:
        """What made the verdicts, in the order of asking."""
        return dict(self.said["operators"])

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        """Tables of `columns` one after another, each with the number of its first row."""
        first = 0
        with pq.ParquetFile(self.folder / "rows.parquet", memory_map=True, pre_buffer=False) as file:
            for batch in file.iter_batches(_BATCH, columns=list(columns), use_threads=False):
                yield first, pa.table(batch)
                first += batch.num_rows

    def read(self, columns: Sequence[str]) -> pa.Table:
        """All rows of `columns` at once."""
        with pq.ParquetFile(self.folder / "rows.parquet", memory_map=True, pre_buffer=False) as file:
            return file.read(columns=list(columns), use_threads=False)


def floats(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of numbers, NaN where there is none: float64."""
    return np.asarray(pc.fill_null(column, np.nan), np.float64)


def of_captions(column: pa.ChunkedArray, counts: np.ndarray) -> np.ndarray:
    """A column of lists, a number a caption, one after another: float64, NaN where there is none.

    `counts` says how many captions each row has; a row that the operator failed on has no list.
    """
    found = np.full(int(counts.sum()), np.nan)
    found[np.repeat(np.asarray(column.is_valid(), bool), counts)] = floats(pc.list_flatten(column))
    return found


def flags(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of verdicts as 1 yes, 0 no, -1 not judged: int8."""
    return np.asarray(pc.fill_null(column.cast(pa.int8()), -1), np.int8)


def lengths(column: pa.ChunkedArray) -> np.ndarray:
    """How many items each list of a column has, 0 where there is none: int64."""
    return np.asarray(pc.fill_null(pc.list_value_length(column), 0), np.int64)
