"""Captions of all rows by split: how many, how long, and some of each to read."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from launch.page.nearest import Side
from producer.keyed import of_strings

# Captions of a split that are shown, and of those refused.
_SHOWN, _REFUSED = 8, 4
# Splits that are counted one by one; sources may name as many as they have captions, and the rest are "(other)".
_SPLITS, OTHER = 24, "(other)"
# Lengths are counted one by one up to here, in tokens.
_LONGEST = 4096


@dataclass(eq=False)
class Split:
    """What was counted of the captions of one split."""

    count: int = 0
    kept: int = 0
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(_LONGEST + 1, np.int64))  # captions by length
    longest: int = 0
    shown: Side = field(default_factory=lambda: Side("", "any", -np.inf, _SHOWN))
    refused: Side = field(default_factory=lambda: Side("", "any", -np.inf, _REFUSED))
    reasons: Counter[str] = field(default_factory=Counter)  # operator -> captions it refused

    def quantile(self, share: float) -> int:
        """The length, in tokens, that so large a share of captions does not exceed."""
        return int(np.searchsorted(np.cumsum(self.tokens), share * self.count))


@dataclass(frozen=True, eq=False)
class Captions:
    """The captions of some rows, one after another."""

    row: np.ndarray  # int64: of the rows at hand
    place: np.ndarray  # int64: which caption of its row
    split: pa.Array
    tokens: np.ndarray
    kept: np.ndarray  # bool
    refused_by: np.ndarray  # of str: the operator's name, "" if kept

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Captions":
        """The captions of a column of an index."""
        column = column.combine_chunks()
        row = np.asarray(pc.list_parent_indices(column), np.int64)
        flat = pc.list_flatten(column)
        starts = np.flatnonzero(np.append(True, row[1:] != row[:-1])) if len(row) else row
        place = np.arange(len(row)) - np.repeat(starts, np.diff(np.append(starts, len(row))))
        reason = pc.struct_field(flat, "reason")
        by = pc.list_element(pc.split_pattern(pc.fill_null(reason, ""), ": ", max_splits=1), 0)
        return cls(
            row,
            place,
            pc.struct_field(flat, "split"),
            np.asarray(pc.fill_null(pc.struct_field(flat, "tokens"), 0), np.int64),
            np.asarray(pc.fill_null(pc.struct_field(flat, "kept"), False), bool),
            np.asarray(by.to_pylist(), object),
        )


def count(splits: dict[str, Split], captions: Captions, first: int, hashes: np.ndarray) -> None:
    """Add `captions` to the splits; their rows begin at number `first` and have the keys' `hashes`."""
    for one in pc.unique(captions.split).to_pylist():
        if one not in splits and len(splits) < _SPLITS:
            splits[one] = Split()
    names = pa.array([*splits, OTHER], pa.string())
    known = pc.if_else(pc.is_in(captions.split, names), captions.split, OTHER)
    for name in pc.unique(known).to_pylist():
        mine = np.flatnonzero(np.asarray(pc.equal(known, name)))
        split = splits.setdefault(name, Split())
        kept, tokens, row = captions.kept[mine], captions.tokens[mine], captions.row[mine]
        split.count += len(mine)
        split.kept += int(kept.sum())
        split.tokens += np.bincount(np.clip(tokens, 0, _LONGEST), minlength=_LONGEST + 1)
        split.longest = max(split.longest, int(tokens.max()))
        split.reasons.update(captions.refused_by[mine][~kept].tolist())
        # A hash of the split's own, so that splits show different samples.
        drawn = hashes[row] ^ of_strings(pa.chunked_array([pa.array([name])]), 0)
        for side, which in ((split.shown, kept), (split.refused, ~kept)):
            side.add(first + row[which], captions.place[mine][which], np.zeros(int(which.sum())), drawn[which])
