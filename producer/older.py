"""Which generation of an index first kept a sample: what older generations kept has precedence over what came later.

A join of files that are sorted by the same key, read side by side: a batch of each is in memory.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from producer.index import generations

_BATCH = 4096
_COLUMNS = ["key", "sha256", "kept"]


class Older:
    """The generations of the index at `path`, asked for ever larger keys; IndexFormatError where one is damaged."""

    def __init__(self, path: Path) -> None:
        self._generations = [(number, _Kept(folder / "rows.parquet")) for number, folder in generations(path)]
        self.newest = max((number for number, _ in self._generations), default=0) + 1  # of what none of them kept

    def first_kept(self, keys: pa.Array, sha256: pa.Array) -> np.ndarray:
        """The number [n] of the first generation that kept each sample with the same bytes, `newest` where none did."""
        found = np.full(len(keys), self.newest, np.int64)
        if not len(keys):
            return found
        for number, kept in self._generations:
            theirs = kept.up_to(keys[-1].as_py())
            row = pc.index_in(keys, theirs["key"].combine_chunks())
            same = pc.fill_null(pc.equal(pc.take(theirs["sha256"], row), sha256), False)
            known = np.asarray(same.combine_chunks() if isinstance(same, pa.ChunkedArray) else same)
            np.minimum(found, np.where(known, number, self.newest), out=found)
        return found


class _Kept:
    """The kept rows of a generation, from small to large keys."""

    def __init__(self, path: Path) -> None:
        self._batches = self._read(path)
        self._held = next(self._batches)

    def _read(self, path: Path) -> Iterator[pa.Table]:
        file = pq.ParquetFile(path)
        yield file.schema_arrow.empty_table().select(_COLUMNS)
        for batch in file.iter_batches(_BATCH, columns=_COLUMNS):
            table = pa.Table.from_batches([batch])
            yield table.filter(table["kept"])

    def up_to(self, key: str) -> pa.Table:
        """The rows up to `key` that were not asked for before."""
        while (batch := self._next(key)) is not None:
            self._held = pa.concat_tables([self._held, batch])
        number = pc.sum(pc.less_equal(self._held["key"], key)).as_py() or 0
        taken, self._held = self._held.slice(0, number), self._held.slice(number)
        return taken

    def _next(self, key: str) -> pa.Table | None:
        if self._held.num_rows and self._held["key"][-1].as_py() > key:
            return None
        return next(self._batches, None)
