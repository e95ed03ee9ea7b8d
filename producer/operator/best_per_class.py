"""Best per class: within each class of a tag only the samples of the best quality and aesthetic stay (stage 7).

A bound on resolution or beauty over the whole set would take most of some classes and little of others; the report
keeps the best of each instead.
"""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from producer.operator.judgement import Judgements, OptIn, batches
from producer.ordering import grouped, ordered, places, real
from producer.scratch import MEMORY, Space, numbers, pieces, spread


class BestPerClassConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 7
    by: str = "taxonomy"  # the tag whose values are the classes; samples without one are a class too
    # Scores of which more is better. Clarity is what enlarging and heavy compression lower, whatever the size on file.
    quality: tuple[str, ...] = Field(default=("clarity",), min_length=1)
    aesthetic: str = "aesthetic"  # the score beside them; where it judges nothing, quality alone counts
    # Of each class. Our choice, the report names no number: the worse half of every class goes, of none more.
    keep: float = Field(default=0.5, gt=0, le=1)
    least: int = Field(
        default=100, ge=1
    )  # samples of a class that stay whatever `keep` says: small ones are not thinned

    def operator(self) -> "BestPerClass":
        return BestPerClass(self)


class BestPerClass:
    """Score: the share of the class's samples that are no better, above 0 to 1; the best has 1. Higher is better.

    Better is a higher product of the sample's ranks in the class by each score of `quality` and by `aesthetic`. What
    was not judged comes last in its rank. Kept within the best `keep` of the class, or within its `least` best; in a
    recipe `thresholds.best_per_class.min = 0.7` keeps the best three tenths of the classes as they were ranked.
    """

    name = "best_per_class"
    version = 1

    def __init__(self, config: BestPerClassConfig) -> None:
        self._config = config
        quality = tuple(f"score.{name}" for name in config.quality)
        self.needs = (f"tag.{config.by}", *quality)
        self.may = (f"score.{config.aesthetic}",)

    def judge_table(self, table: pa.Table, space: Space = MEMORY) -> Iterator[Judgements]:
        judged = self._judged(table, space)
        if not judged:
            for part in batches(table):
                none = np.full(part.num_rows, np.nan), np.full(part.num_rows, -1, np.int8)
                yield Judgements(*none, pa.array([""] * part.num_rows, pa.string()))
            return
        classes, of = _classes(table[self.needs[0]], space)
        sizes = np.zeros(len(classes), np.int64)
        for part in pieces(len(of)):
            sizes += np.bincount(of[part], minlength=len(classes))
        product = space.filled(len(of), np.float64, 1)
        for score in judged.values():
            _multiply(product, score, of, sizes, space)
        yield from self._keep(product, of, sizes, space, classes, " and ".join(judged))

    def _judged(self, table: pa.Table, space: Space) -> dict[str, np.ndarray]:
        """The scores to rank by; those that know nothing of any row are left out."""
        names = [name for name in (*self.needs[1:], *self.may) if name in table.column_names]
        known = [name for name in names if table[name].null_count < table.num_rows]
        return {name.removeprefix("score."): space.reals(table[name]) for name in known}

    def _keep(
        self, product: np.ndarray, of: np.ndarray, sizes: np.ndarray, space: Space, classes: list[str], by: str
    ) -> Iterator[Judgements]:
        stay = np.maximum(self._config.least, np.ceil(self._config.keep * sizes)).astype(np.int64)
        drop = pa.array(
            f"below the best {best} of {size} of {name or 'no class'} by {by}"
            for name, size, best in zip(classes, sizes.tolist(), stay.tolist(), strict=True)
        )
        better = space.empty(len(of), np.int64)
        # Of equal ones the smaller key comes first: rows are sorted by key.
        rows = _ranked(of, product, space)
        for part, first in grouped(rows, 1):
            better[places(rows, part)] = numbers(part) - first
        for part in pieces(len(of)):
            mine = of[part]
            gone = better[part] >= stay[mine]
            reason = spread(gone, drop.take(pa.array(mine[gone])))
            yield Judgements(1 - better[part] / sizes[mine], np.where(gone, 0, 1).astype(np.int8), reason)


def _classes(column: pa.ChunkedArray, space: Space) -> tuple[list[str], np.ndarray]:
    """The values of a tag's `column`, "" for nothing, and the number among them of each row's, int32."""
    seen: dict[str, int] = {}
    of = space.empty(len(column), np.int32)
    for part in pieces(len(column)):
        values = pc.fill_null(column.slice(part.start, part.stop - part.start), "")
        coded = values.combine_chunks().dictionary_encode()
        mine = [seen.setdefault(name, len(seen)) for name in coded.dictionary.to_pylist()]
        of[part] = np.asarray(mine, np.int32)[np.asarray(coded.indices)]
    return list(seen), of


def _ranked(of: np.ndarray, score: np.ndarray, space: Space) -> np.ndarray:
    """Rows by class, and in it by falling `score`, as `ordered` gives them."""
    words = (lambda part: of[part].astype(np.uint64)), (lambda part: ~real(score[part]))
    return ordered(len(of), *words, space=space)


def _multiply(product: np.ndarray, score: np.ndarray, of: np.ndarray, sizes: np.ndarray, space: Space) -> None:
    """Multiply `product` by the share of its class that each row's `score` is not below, NaN being the least."""
    ends, rows = np.cumsum(sizes), _ranked(of, score, space)
    for part, first in grouped(rows, 2):
        row = places(rows, part)
        product[row] *= (ends[of[row]] - first) / sizes[of[row]]
