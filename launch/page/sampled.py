"""A fixed sample of an index's rows: those whose keys have the smallest hashes, the same on every run."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

# Of the keys' hashes. Not one of the plan's: a sample to look at is no part of any order.
SALT = 0x4C4F4F4B


@dataclass(eq=False)
class Sampled:
    """At most `most` rows of all that were seen, by rising hash: a shorter one is its beginning."""

    most: int
    table: pa.Table = None  # none before the first rows
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

    def add(self, table: pa.Table, hashes: np.ndarray) -> None:
        """Look at more rows, which have the same columns as those before."""
        if len(self.hashes) == self.most:
            low = np.flatnonzero(hashes < self.hashes[-1])
            table, hashes = table.take(low), hashes[low]
        if self.table is not None:
            table, hashes = pa.concat_tables([self.table, table]), np.append(self.hashes, hashes)
        first = np.argsort(hashes, kind="stable")[: self.most]
        self.table, self.hashes = table.take(first).combine_chunks(), hashes[first]
