"""Best per class: within each class of a tag only the samples of the best quality and aesthetic stay (stage 7).

A bound on resolution or beauty over the whole set would take most of some classes and little of others; the report
keeps the best of each instead.
"""

from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from producer.operator.judgement import Judgements, OptIn


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

    def judge_table(self, table: pa.Table) -> Judgements:
        number = table.num_rows
        names = [name for name in (*self.needs[1:], *self.may) if name in table.column_names]
        scores = {name.removeprefix("score."): np.asarray(table[name].to_numpy(), np.float64) for name in names}
        judged = {name: score for name, score in scores.items() if not np.isnan(score).all()}
        found = np.full(number, np.nan)
        verdict, reason = np.full(number, -1, np.int8), np.full(number, "", object)
        if not judged:
            return Judgements(found, verdict, pa.array(reason.tolist(), pa.string()))
        coded = pc.fill_null(table[self.needs[0]], "").combine_chunks().dictionary_encode()
        of, classes = np.asarray(coded.indices), coded.dictionary.to_pylist()
        order = np.argsort(of, kind="stable")
        for name, rows in zip(classes, np.split(order, np.cumsum(np.bincount(of))[:-1]), strict=True):
            product = np.prod([_ranks(score[rows]) for score in judged.values()], axis=0)
            # Of equal ones the smaller key comes first: rows are sorted by key.
            rows = rows[np.argsort(-product, kind="stable")]
            stay = max(self._config.least, int(np.ceil(self._config.keep * len(rows))))
            found[rows] = 1 - np.arange(len(rows)) / len(rows)
            verdict[rows[:stay]], verdict[rows[stay:]] = 1, 0
            said = f"below the best {stay} of {len(rows)} of {name or 'no class'} by {' and '.join(judged)}"
            reason[rows[stay:]] = said
        return Judgements(found, verdict, pa.array(reason.tolist(), pa.string()))


def _ranks(scores: np.ndarray) -> np.ndarray:
    """The share of `scores` that each is not below: above 0 to 1, the least where it is NaN."""
    filled = np.where(np.isnan(scores), -np.inf, scores)
    return np.searchsorted(np.sort(filled), filled, side="right") / len(filled)
