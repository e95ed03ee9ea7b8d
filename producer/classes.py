"""Classes: what the tags of an index (columns `tag.NAME`, and `source`) sort its rows into, for a mixture by class.

A class is one value of each tag that recipe.classes names; its weight is the product of the values' weights.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Values without a weight that are counted one by one, the most frequent first; the others are counted together.
_COUNTED = 8


class ClassError(ValueError):
    """recipe.classes names a tag or a value that the index does not have, or has no row of to train on."""


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes that rows of an index are in."""

    names: tuple[tuple[str, ...], ...]  # ("domain=nature", "script=english"): its values, tags in alphabetical order
    weight: np.ndarray  # float64 [classes]
    value: np.ndarray  # int64 [tags, classes]: the number of the class's value of each tag
    row: np.ndarray  # int16: each row's class, -1 where a value of it has no weight

    def require_each(self, trained: np.ndarray, table: pa.Table, weights: Mapping[str, Mapping[str, float]]) -> None:
        """ClassError if a value with a weight has no row among `trained` (bool)."""
        found = np.bincount(self.row[trained & (self.row >= 0)], minlength=len(self.names)) > 0
        for of_class, (tag, values) in zip(self.value, sorted(weights.items()), strict=True):
            missing = sorted(set(range(len(values))) - set(of_class[found].tolist()))
            if missing:
                raise ClassError(_no_rows(tag, sorted(values)[missing[0]], tag_column(table, tag)))


def sort_rows(
    table: pa.Table, weights: Mapping[str, Mapping[str, float]]
) -> tuple[Classes, list[tuple[np.ndarray, str]]]:
    """The classes of the rows of `table`, and which rows (bool) have a value without weight, with a reason for each."""
    code, left_out = np.zeros(table.num_rows, np.int64), []
    for tag in sorted(weights):
        column, values = tag_column(table, tag), sorted(weights[tag])
        mine = np.asarray(pc.fill_null(pc.index_in(column, value_set=pa.array(values, pa.string())), -1), np.int64)
        left_out += _without_weight(tag, column, mine < 0)
        code = np.where((code < 0) | (mine < 0), -1, code * len(values) + mine)
    present, row = np.unique(code[code >= 0], return_inverse=True)
    of_row = np.full(len(code), -1, np.int16)
    of_row[code >= 0] = row
    value = np.unravel_index(present, [len(weights[tag]) for tag in sorted(weights)])
    named = [(tag, sorted(weights[tag]), mine.tolist()) for tag, mine in zip(sorted(weights), value, strict=True)]
    names = [tuple(f"{tag}={values[mine[k]]}" for tag, values, mine in named) for k in range(len(present))]
    weight = np.ones(len(present))
    for tag, values, mine in named:
        weight *= np.asarray([weights[tag][values[k]] for k in mine], np.float64)
    return Classes(tuple(names), weight, np.asarray(value).reshape(len(weights), -1), of_row), left_out


def tag_column(table: pa.Table, tag: str) -> pa.ChunkedArray:
    """The strings of `tag`: the column `tag.NAME`, or `source`."""
    if f"tag.{tag}" in table.column_names:
        return table[f"tag.{tag}"]
    if tag == "source":
        return table["source"]
    known = ["source", *(name.removeprefix("tag.") for name in table.column_names if name.startswith("tag."))]
    near = difflib.get_close_matches(tag, known, 1)
    raise ClassError(
        f"recipe.classes.{tag}: no such tag in the index; "
        + (f"did you mean {near[0]}?" if near else f"it has {known}")
    )


def _without_weight(tag: str, column: pa.ChunkedArray, left: np.ndarray) -> list[tuple[np.ndarray, str]]:
    """The rows `left` (bool) by their value, the rare ones together."""
    if not left.any():
        return []
    filled = pc.fill_null(column, "")
    counted = pc.value_counts(filled.filter(pa.array(left)))
    values = sorted(counted.to_pylist(), key=lambda one: (-one["counts"], one["values"]))
    parts, rest = [], left
    for value in (one["values"] for one in values[:_COUNTED]):
        mine = rest & np.asarray(pc.equal(filled, value), bool)
        said = f"{tag} {value}" if value else f"{tag} not known"
        parts.append((mine, f"{said}, which recipe.classes gives no weight"))
        rest = rest & ~mine
    others = len(values) - _COUNTED
    if others > 0:
        parts.append((rest, f"{tag} of {others} other values, which recipe.classes gives no weight"))
    return parts


def _no_rows(tag: str, value: str, column: pa.ChunkedArray) -> str:
    there = sorted(pc.unique(pc.fill_null(column, "")).to_pylist())
    said = f"recipe.classes.{tag}.{value}: leaves nothing to train on of the index's rows; "
    if value in there:
        return said + "all that have it are left out otherwise: delete the weight, or let some of them in"
    near = difflib.get_close_matches(value, there, 1)
    return said + (f"did you mean {near[0]}?" if near else f"their {tag} is one of {there[:20]}")
