"""The recipe: which samples of an index count, at which size, with which caption. Nothing is scored again.

`select` turns an index and a recipe into columns; the plan orders what they hold.
"""

import difflib
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, field_validator, model_validator

from producer.api.bucket import ASPECTS, Bucket, bucket
from producer.classes import Classes, sort_rows
from producer.keyed import of_strings
from producer.reference import tokens as reference_tokens

# Not the run's seed: every run and every recipe must hold out the same samples, or what one held out the next trained.
_HELD_OUT_SALT = 0x48454C44

# Of recipe.classes; each that has rows is a stream of its own for every split and task.
_MAX_CLASSES = 4096


# Tasks: text to image, and edits, which start from reference pictures.
T2I, TI2I = "t2i", "ti2i"


class RecipeError(ValueError):
    """The recipe does not fit the index, or leaves nothing to train on."""


class Threshold(BaseModel, frozen=True, strict=True, extra="forbid"):
    """Bounds on an operator's stored score, both included."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> "Threshold":
        if self.min is None and self.max is None:
            raise ValueError("neither min nor max is set: give one, or delete the threshold")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}: no score can pass")
        return self


class RecipeConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """What to train on. Weights are shares of samples and need not sum to one."""

    resolutions: tuple[int, ...] = (256,)  # pixels; a picture goes to the largest that it fills
    aspects: tuple[str, ...] = ASPECTS  # width:height
    units: int = Field(default=16, ge=1)  # units a step; data-parallel ranks divide them
    samples: int = Field(default=16, ge=1)  # in a unit of the smallest resolution; larger ones hold fewer, at one cost
    splits: dict[str, float] = {"raw": 1.0}  # caption split -> weight; of several captions in a split, the first
    tasks: dict[str, float] = {T2I: 1.0}  # -> weight, times the split's; ti2i: with references
    classes: dict[str, dict[str, float]] = {}  # tag -> value -> weight, times the split's and the task's; 0: none
    reference_resolution: int = Field(default=1024, ge=32)  # pixels: its square is the area the VAE sees of a reference
    thresholds: dict[str, Threshold] = {}  # operator -> bounds, beyond the index's own verdicts
    max_text_tokens: int = Field(default=1024, ge=1)  # of a caption; longer ones are not used
    min_fill: float = Field(default=0.75, gt=0)  # least share of the bucket's pixels the picture must have itself
    validation_samples: int = Field(default=0, ge=0)  # held out, as a number ...
    validation_share: float = Field(default=0.0, ge=0, lt=1)  # ... or as a share of the duplicate clusters
    max_imbalance: float = Field(default=0.25, gt=0)  # the costliest rank over the mean, less one

    @field_validator("classes")
    @classmethod
    def _weighed(cls, classes: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        """Without the values, and the tags, that a file laid over another takes out again by a weight of 0."""
        for tag, weights in classes.items():
            if not weights or not all(0 <= weight < math.inf for weight in weights.values()):
                raise ValueError(f"recipe.classes.{tag}: {weights}; name at least one value, and give each a weight")
        left = {tag: {value: weight for value, weight in of.items() if weight} for tag, of in classes.items()}
        return {tag: weights for tag, weights in left.items() if weights}

    @model_validator(mode="after")
    def _fits(self) -> "RecipeConfig":
        if not self.resolutions or min(self.resolutions) < 16:
            raise ValueError(f"recipe.resolutions: {list(self.resolutions)} must be one or more sizes of 16 or above")
        wrong = [aspect for aspect in self.aspects if not _is_aspect(aspect)]
        if wrong or not self.aspects:
            raise ValueError(f"recipe.aspects: {wrong or 'none'}; write aspects as width:height, like 3:2")
        if not self.splits or min(self.splits.values()) <= 0:
            raise ValueError(f"recipe.splits: {self.splits}; name at least one split, and give each a positive weight")
        if not self.tasks or self.tasks.keys() - {T2I, TI2I} or min(self.tasks.values()) <= 0:
            raise ValueError(f"recipe.tasks: {self.tasks}; name t2i, ti2i or both, and give each a positive weight")
        classes = math.prod(map(len, self.classes.values()))
        if classes > _MAX_CLASSES:
            raise ValueError(
                f"recipe.classes: {classes} combinations of {', '.join(self.classes)}; at most {_MAX_CLASSES} can be "
                "mixed: give fewer tags or fewer values a weight"
            )
        if self.validation_samples and self.validation_share:
            raise ValueError(
                f"recipe.validation_samples: {self.validation_samples} and validation_share "
                f"{self.validation_share} are both set; choose one"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """What the plan's order follows from, as JSON values. Recipes without edits keep the one they always had."""
        edits = {"tasks", "reference_resolution"} if self.tasks == {T2I: 1.0} else set()
        return {name: value for name, value in self.said().items() if name not in edits}

    def said(self) -> dict[str, Any]:
        """All of it, as JSON values. Without classes not a word of them: a journal goes on as it always was."""
        return self.model_dump(mode="json", exclude=set() if self.classes else {"classes"})

    def buckets(self, resolution: int) -> list[Bucket]:
        """The buckets of one resolution, in the order of `aspects`; small sizes may give two aspects one bucket."""
        return list(dict.fromkeys(bucket(resolution, aspect) for aspect in self.aspects))

    @property
    def all_buckets(self) -> set[Bucket]:
        """The buckets of every resolution."""
        return {bucket for size in self.resolutions for bucket in self.buckets(size)}

    @property
    def reference(self) -> Bucket | None:
        """A square reference as the VAE sees it, None where there are no edits."""
        side = round(self.reference_resolution / 32) * 32
        return Bucket(side, side) if TI2I in self.tasks else None


def _is_aspect(text: str) -> bool:
    across, colon, down = text.partition(":")
    return bool(colon) and all(side.isascii() and side.isdigit() and int(side) > 0 for side in (across, down))


@dataclass(frozen=True, eq=False)
class Selection:
    """What a recipe takes from an index, a row of each array an index row."""

    buckets: tuple[Bucket, ...]
    bucket: np.ndarray  # int16: number in `buckets`, -1 where the picture fills none
    splits: tuple[str, ...]
    tokens: np.ndarray  # int32 [splits, rows]: caption tokens, -1 where the row is not used with that split
    held_out: np.ndarray  # bool: in a duplicate cluster kept for validation, never trained on
    validation: np.ndarray  # int64: the row numbers to validate on, one of each held-out cluster
    held_below: int  # clusters whose hash is below are held out
    counts: dict[str, dict[str, int]]  # split -> outcome -> rows; the outcomes of a split sum to the index's rows
    references: np.ndarray | None = None  # int32: tokens that references add to a row, 0 without; none: no row has any
    classes: Classes | None = None  # of the rows; none: the recipe has no classes

    def of_task(self, task: str) -> np.ndarray:
        """bool: the rows that are samples of `task`, used or not."""
        if self.references is None:
            return np.full(len(self.bucket), task == T2I)
        return (self.references > 0) == (task == TI2I)


def select(
    table: pa.Table, recipe: RecipeConfig, *, bound: int | None = None, also: np.ndarray | None = None
) -> Selection:
    """The rows of an index's `table` that `recipe` uses, and how many of the rest it leaves for which reason.

    With `bound` the clusters held out are those of an earlier selection (its `held_below`) and the ones that the rows
    `also`, which that one validates on, are in by now.
    """
    outcome = _Outcomes(table.num_rows)
    outcome.require(_flags(table["kept"]), "not kept by curation")
    references = _references(table["references"], recipe.reference_resolution**2)
    if references is not None:
        for task in (T2I, TI2I):
            if task not in recipe.tasks:
                outcome.require((references > 0) == (task == T2I), f"{task}, which recipe.tasks gives no weight")
    bounded = {name: _score(table, name) for name in recipe.thresholds}
    of_captions = {name: score for name, score in bounded.items() if pa.types.is_list(score.type)}
    for name in (name for name in bounded if name not in of_captions):
        _bound(_floats(bounded[name]), name, recipe.thresholds[name], outcome)
    classes = _classes(table, recipe, outcome)
    buckets = tuple(dict.fromkeys(b for size in recipe.resolutions for b in recipe.buckets(size)))
    place = _place(_numbers(table["height"]), _numbers(table["width"]), buckets, recipe)
    outcome.require(place >= 0, "too small for every bucket")
    words = [_Captions.of(table["captions"], split) for split in recipe.splits]
    tokens = np.stack([mine.tokens for mine in words])
    outcomes = [_speak(outcome.copy(), mine, of_captions, recipe) for mine in words]
    usable = np.stack([mine.passed for mine in outcomes])
    held_out, validation, below = _hold_out(table["cluster"], np.logical_or.reduce(usable), recipe, bound, also)
    for mine in outcomes:
        mine.require(~held_out, "held out for validation")
    for split, mine in zip(recipe.splits, outcomes, strict=True):
        if not mine.passed.any():
            raise RecipeError(f"recipe.splits.{split}: leaves nothing to train on of the index's rows: {mine.counts}")
    counts = {split: mine.summary() for split, mine in zip(recipe.splits, outcomes, strict=True)}
    tokens, splits = np.where(usable, tokens, -1), tuple(recipe.splits)
    selection = Selection(buckets, place, splits, tokens, held_out, validation, below, counts, references, classes)
    _require_each(selection, table, recipe, np.logical_or.reduce(usable) & ~held_out)
    return selection


def _classes(table: pa.Table, recipe: RecipeConfig, outcome: "_Outcomes") -> Classes | None:
    if not recipe.classes:
        return None
    classes, without = sort_rows(table, recipe.classes)
    for rows, reason in without:
        outcome.require(~rows, reason)
    return classes


def _require_each(selection: Selection, table: pa.Table, recipe: RecipeConfig, trained: np.ndarray) -> None:
    """RecipeError or ClassError unless each task and class with a weight has rows among `trained` (bool)."""
    for task in recipe.tasks:
        if not (selection.of_task(task) & trained).any():
            said = f"recipe.tasks.{task}: leaves nothing to train on of the index's rows: {selection.counts}"
            raise RecipeError(said)
    if selection.classes is not None:
        selection.classes.require_each(trained, table, recipe.classes)


def _speak(
    outcome: "_Outcomes", captions: "_Captions", scores: dict[str, pa.ChunkedArray], recipe: RecipeConfig
) -> "_Outcomes":
    """`outcome` of a split, after what its captions and their `scores` by operator say."""
    outcome.require(captions.tokens >= 0, "no such caption")
    outcome.require(captions.kept, "caption not kept by curation")
    outcome.require(captions.tokens <= recipe.max_text_tokens, f"caption above {recipe.max_text_tokens} tokens")
    for name, all_scores in scores.items():
        score = captions.take(all_scores)
        # An operator that judges none of a split, as those of raw captions do of others, does not bound it.
        if not np.isnan(score).all():
            _bound(score, name, recipe.thresholds[name], outcome)
    return outcome


class _Outcomes:
    """Rows still in, and why the others are out: each is counted once, for the first reason."""

    def __init__(self, rows: int) -> None:
        self.passed = np.ones(rows, bool)
        self.counts: dict[str, int] = {}

    def require(self, holds: np.ndarray, reason: str) -> None:
        failed = int(np.count_nonzero(self.passed & ~holds))
        if failed:
            self.counts[reason] = failed
            self.passed &= holds

    def copy(self) -> "_Outcomes":
        other = _Outcomes(0)
        other.passed, other.counts = self.passed.copy(), dict(self.counts)
        return other

    def summary(self) -> dict[str, int]:
        return {"used": int(np.count_nonzero(self.passed)), **self.counts}


def _score(table: pa.Table, name: str) -> pa.ChunkedArray:
    """The scores that recipe.thresholds bounds by `name`."""
    if f"score.{name}" not in table.column_names:
        known = [column.removeprefix("score.") for column in table.column_names if column.startswith("score.")]
        near = difflib.get_close_matches(name, known, 1)
        raise RecipeError(
            f"recipe.thresholds.{name}: no such operator in the index; "
            + (f"did you mean {near[0]}?" if near else f"it has {known}")
        )
    return table[f"score.{name}"]


def _bound(score: np.ndarray, name: str, threshold: Threshold, outcome: _Outcomes) -> None:
    outcome.require(~np.isnan(score), f"{name} not judged")
    if threshold.min is not None:
        outcome.require(score >= threshold.min, f"{name} below {threshold.min:g}")
    if threshold.max is not None:
        outcome.require(score <= threshold.max, f"{name} above {threshold.max:g}")


def _place(height: np.ndarray, width: np.ndarray, buckets: tuple[Bucket, ...], recipe: RecipeConfig) -> np.ndarray:
    """The number in `buckets` for each picture, -1 where it would be enlarged too much: int16."""
    place = np.full(len(height), -1, np.int16)
    for size in sorted(recipe.resolutions, reverse=True):
        mine = sorted(recipe.buckets(size), key=lambda b: b.width / b.height)
        nearest = np.asarray([buckets.index(b) for b in mine], np.int16)[_nearest(height, width, mine)]
        sides = np.asarray(buckets, np.float64)[nearest]
        # The resize covers the bucket and crops the rest, so the scarcer side decides.
        fill = np.minimum(height / sides[:, 0], width / sides[:, 1]) ** 2
        place = np.where((place < 0) & (fill >= recipe.min_fill), nearest, place)
    return place


def _nearest(height: np.ndarray, width: np.ndarray, buckets: list[Bucket]) -> np.ndarray:
    """producer.api.bucket.nearest on arrays: `buckets` by rising aspect, boundaries at their geometric means.

    Squared instead of logarithms, whose last bit differs between machines, and with it the plan.
    """
    bounds = [a.width * b.width / (a.height * b.height) for a, b in pairwise(buckets)]
    aspect = width.astype(np.float64) / np.maximum(height, 1)
    return np.searchsorted(np.asarray(bounds), aspect * aspect)


@dataclass(frozen=True, eq=False)
class _Captions:
    """Each row's first caption of a split."""

    tokens: np.ndarray  # int32, -1 where it has none
    kept: np.ndarray  # bool: curation keeps it
    place: np.ndarray  # int64: its number among the captions of its row, -1 where there is none

    @classmethod
    def of(cls, captions: pa.ChunkedArray, split: str) -> "_Captions":
        tokens, kept = np.full(len(captions), -1, np.int32), np.zeros(len(captions), bool)
        place = np.full(len(captions), -1, np.int64)
        start = 0
        for chunk in captions.chunks:
            parent = np.asarray(pc.list_parent_indices(chunk))
            flat = pc.list_flatten(chunk)
            at = np.flatnonzero(_flags(pc.equal(flat.field("split"), split)))
            rows, first = np.unique(parent[at], return_index=True)
            tokens[start + rows] = _numbers(flat.field("tokens"))[at[first]]
            kept[start + rows] = _flags(flat.field("kept"))[at[first]]
            place[start + rows] = at[first] - _begins(chunk)[rows]
            start += len(chunk)
        return cls(tokens, kept, place)

    def take(self, scores: pa.ChunkedArray) -> np.ndarray:
        """Of `scores`, a list a row with one for each caption: this caption's, NaN where there is none: float64."""
        flat, begins = _floats(pc.list_flatten(scores)), _begins(scores)
        # A row has no list where the operator is off or failed on it.
        there = (self.place >= 0) & _flags(pc.is_valid(scores))
        found = np.full(len(there), np.nan)
        found[there] = flat[(begins + self.place)[there]]
        return found


def _begins(lists: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Where the items of each list begin among those of all: int64."""
    counts = _numbers(pc.list_value_length(lists))
    return np.cumsum(counts) - counts


def _references(references: pa.ChunkedArray, area: int) -> np.ndarray | None:
    """Tokens that each row's references add to it: int32, None where no row has any."""
    counts = np.asarray(pc.fill_null(pc.list_value_length(references), 0), np.int64)
    if not counts.any():
        return None
    flat = pc.list_flatten(references)
    height, width = (_numbers(pc.struct_field(flat, name)) for name in ("height", "width"))
    row = np.repeat(np.arange(len(counts)), counts)
    return np.bincount(row, reference_tokens(height, width, area), len(counts)).astype(np.int32)


def _hold_out(
    cluster: pa.ChunkedArray, usable: np.ndarray, recipe: RecipeConfig, bound: int | None, also: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """The rows kept from training, one usable row of each cluster among them, and the bound of the clusters' hashes.

    The hash of a cluster decides, so an index that grows never hands a trained sample to validation. A share also
    withstands stricter thresholds; a number then lets the next clusters in, trained or not, unless `bound` is given.
    """
    if not bound and not recipe.validation_samples and not recipe.validation_share:
        return np.zeros(len(usable), bool), np.zeros(0, np.int64), 0
    hashes = of_strings(cluster, _HELD_OUT_SALT)
    candidates, rows = np.unique(hashes[usable], return_index=True)
    if bound is not None:
        below = bound
    elif recipe.validation_samples:
        if recipe.validation_samples >= len(candidates):
            raise RecipeError(
                f"recipe.validation_samples: {recipe.validation_samples} of {len(candidates)} usable duplicate "
                f"clusters leave nothing to train on; hold out fewer"
            )
        below = int(candidates[recipe.validation_samples])
    else:
        below = int(recipe.validation_share * 2**64)
    chosen = candidates < np.uint64(below)
    if also is not None:
        chosen |= np.isin(candidates, hashes[also])
    return usable & np.isin(hashes, candidates[chosen]), np.flatnonzero(usable)[rows[chosen]], below


def _flags(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(column, False), bool)


def _floats(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(column, np.nan), np.float64)


def _numbers(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(column, 0), np.int64)
