"""What operators are: judges of samples, each with one number a sample and a bound on it.

The number is a fact and kept; the verdict follows from it and a threshold, so that moving a threshold scores nothing
again. An operator sees samples, a few at a time, in parallel, and judges the sample (`Operator`) or each of its
captions (`CaptionOperator`, and `TextOperator` by the words alone); or it looks at the whole set at once, after the
others, for duplicates (`SetOperator`) or anything else (`TableOperator`). Its docstring defines its score: unit, range,
what higher means. A `Tagger` judges nothing: it says one string of a sample, a class or what it reads.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

import cv2
import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from producer.clusters import Age
from producer.neighbours import Hashes
from producer.scratch import MEMORY, Space
from producer.source.shard import RawSample

# Pixels of the longest side that operators see at most, so that a score does not depend on the size of the scan and a
# batch of samples has a bounded size.
SIDE = 512
# Pixels of the longest side for operators that look for small things, text and codes: letters of 12 pixels at 1328p are
# that large here. Made only where one of them judges, since a batch then holds up to 5 MB a picture instead of 0.8.
FINE = 1280


class Score(NamedTuple):
    """An operator's number for one sample, None where there is nothing to judge; `note` is what it has to say."""

    value: float | None
    note: str = ""


class Judgement(NamedTuple):
    """`verdict` is True to keep, False to drop with a reason, None where not judged."""

    score: float | None
    verdict: bool | None
    reason: str = ""


NOT_JUDGED = Judgement(None, None)
# How the reason begins where a sample is left out since an operator raised on it: it is counted as failed, not dropped.
FAILED = "failed: "


def what_failed(error: Exception) -> str:
    """One line of what an operator raised."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


class Judgements(NamedTuple):
    """Judgements of many rows without an object each."""

    score: np.ndarray  # float64, NaN where there is none
    verdict: np.ndarray  # int8: 1 to keep, 0 to drop, -1 where not judged
    reason: pa.StringArray

    @classmethod
    def of(cls, judged: Sequence[Judgement]) -> "Judgements":
        """The same as columns."""
        score = [np.nan if one.score is None else one.score for one in judged]
        verdict = [-1 if one.verdict is None else int(one.verdict) for one in judged]
        reason = pa.array([one.reason for one in judged], pa.string())
        return cls(np.asarray(score, np.float64), np.asarray(verdict, np.int8), reason)


# Rows of a table that become Python objects at a time.
_ROWS = 1 << 13


def batches(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """`table` by some thousand rows, for operators that look at one row after the other."""
    yield from table.to_batches(max_chunksize=_ROWS)


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image: its own size in pixels, upright, and RGB uint8 [y, x, 3] reduced to SIDE."""

    width: int
    height: int
    pixels: np.ndarray
    native: np.ndarray | None = None  # where reduced, its middle at its own scale, RGB of SIDE x SIDE at most
    orientation: int = 1  # the EXIF tag it came with, 1 to 8
    fine: np.ndarray | None = (
        None  # RGB reduced to FINE, where `pixels` has less and an operator looks for small things
    )

    @property
    def finest(self) -> np.ndarray:
        """The whole picture with as many pixels as were kept, RGB."""
        return self.pixels if self.fine is None else self.fine

    @cached_property
    def grey(self) -> np.ndarray:
        """Luma of `pixels`, uint8 [y, x], made once for all operators."""
        return cv2.cvtColor(self.pixels, cv2.COLOR_RGB2GRAY)

    @cached_property
    def native_grey(self) -> np.ndarray:
        """Luma of the middle at the picture's own scale, uint8 [y, x]."""
        return self.grey if self.native is None else cv2.cvtColor(self.native, cv2.COLOR_RGB2GRAY)


@dataclass(frozen=True, eq=False)
class Sample:
    """What an operator may look at. The image was decoded once, for all of them."""

    raw: RawSample
    picture: Picture | None
    fault: str = ""  # why there is no picture
    # What was made of it once for several operators: an embedding, the text read in it.
    memo: dict[str, Any] = field(default_factory=dict)


class Operator(Protocol):
    """A judge of single samples. One with `fine = True`, or a Tagger with it, gets pictures with their `fine` view."""

    name: str
    version: int  # another one when the score's definition changes: everything is scored again

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """A score for each of a fixed batch of samples."""

    def judge(self, score: Score) -> Judgement:
        """What the threshold makes of a score."""


class Tagger(Protocol):
    """Says one string of each sample: a class, or what it reads. It drops nothing."""

    name: str
    version: int

    def tag(self, samples: Sequence[Sample]) -> list[str]:
        """A string for each of a fixed batch of samples, "" where nothing can be said."""


class CaptionOperator(Protocol):
    """A judge of captions beside their pictures. One that fails is not trained on; its sample stays with another."""

    name: str
    version: int

    def score_captions(self, samples: Sequence[Sample]) -> list[list[Score]]:
        """For each sample of a fixed batch a score a caption, by sorted split, None for those it does not judge."""

    def judge(self, score: Score) -> Judgement:
        """What the threshold makes of a caption's score."""


class TextOperator(Protocol):
    """A judge of captions by their words alone; asked after tokens are counted, and cheap: nothing of it is stored."""

    name: str
    version: int

    def score_texts(self, splits: Sequence[str], texts: Sequence[str], tokens: Sequence[int]) -> list[Score]:
        """A score for each caption, which is of a split and has so many tokens; None where it does not judge."""

    def judge(self, score: Score) -> Judgement:
        """What the threshold makes of a caption's score."""


class TableOperator(Protocol):
    """A judge that looks at columns of all samples that are still kept, after duplicates."""

    name: str
    version: int
    needs: tuple[str, ...]  # columns of the index, see producer/index.py; `may`, if it has it: those it can do without

    def judge_table(self, table: pa.Table, space: Space = MEMORY) -> Iterable[Judgements]:
        """Judgements of all rows of `table`, a piece after the other, in their order.

        `table` has `needs`, and what there is of `may`, and is sorted by key. It lies in a file that is mapped into
        memory, and may have many millions of rows: `batches` gives a few at a time, and what must be known of all of
        them belongs into `space`.
        """


class TableTagger(Protocol):
    """Says one string of each sample from columns of all that are still kept, captions and other tags among them.

    So what annotation added and what other operators found is known, and moving a rule scores nothing again.
    """

    name: str
    version: int
    needs: tuple[str, ...]
    may: tuple[str, ...]

    def tag_table(self, table: pa.Table, space: Space = MEMORY) -> Iterable[Sequence[str]]:
        """A string for each row of `table`, as TableOperator sees it, a piece after the other; "" where nothing can be
        said.
        """


class CaptionCrowds(NamedTuple):
    """How alike captions are: `score` float64 and `kept` bool, for each."""

    score: np.ndarray
    kept: np.ndarray


class CaptionSetOperator(Protocol):
    """A judge that compares the captions of all samples that are still kept, after duplicates among pictures."""

    name: str
    version: int

    def crowds(self, sketches: np.ndarray, generation: np.ndarray, space: Space = MEMORY) -> CaptionCrowds:
        """Of captions by the key of their sample: their sketches (see producer/minhash.py), and the number of the
        generation that first kept their sample. Arrays as long as these belong into `space`.
        """

    def reason(self, score: float) -> str:
        """Why a caption of this score is not kept."""


Judge = CaptionSetOperator | Operator | Tagger | CaptionOperator | TextOperator | TableOperator | TableTagger


class OptIn(BaseModel, frozen=True, strict=True, extra="forbid"):
    """Settings of an operator that judges only where `[operators.FILE]` is in the recipe, FILE being its file's name.

    stage.py finds each subclass by itself. Settings are thresholds: what a score depends on is the file's `version`,
    and what `content` says.
    """

    stage: ClassVar[int]  # of arXiv 2508.02324 section 3.2; operators are asked by stage, then by name
    of: ClassVar[Literal["sample", "captions", "tag"]] = "sample"  # what it says something of; "tag": it is a Tagger
    runs_model: ClassVar[bool] = False  # a neural network, on a GPU where there is one
    always: ClassVar[bool] = False  # every recipe has its section: without its model it is seen to be off

    def operator(self) -> Judge:
        """The operator with these settings."""
        raise NotImplementedError

    def off_reason(self) -> str:
        """Why it cannot judge with these settings, such as the setting that names its model; "" if it can."""
        return ""

    def content(self) -> dict[str, Any]:
        """What scores depend on beside the file's version, as JSON values: a model by its hash, never by its path."""
        return {}

    def absolute(self) -> Self:
        """The same for a process in another folder."""
        paths = {name: value.absolute() for name, value in self if isinstance(value, Path)}
        return self.model_copy(update=paths)

    def thresholds(self) -> dict[str, Any]:
        """All settings but paths, as JSON values."""
        paths = {name for name, value in self if isinstance(value, Path)}
        return self.model_dump(mode="json", exclude=paths)


@dataclass(frozen=True, eq=False)
class Facts:
    """The samples that every other operator would keep, a row each, sorted by key."""

    age: Age
    sha256: np.ndarray  # uint64 [n, 2], its first 128 bits
    hashes: Hashes
    space: Space = MEMORY  # where arrays as long as these belong


class Clusters(NamedTuple):
    """Which samples are the same: `representative` holds the row kept for each row, its own when alone."""

    representative: np.ndarray  # int64
    score: np.ndarray  # float64, NaN where not judged
    reason: str  # for the rows not kept, before the key of the one that is


class SetOperator(Protocol):
    """A judge that compares all samples."""

    name: str
    version: int

    def cluster(self, facts: Facts) -> Clusters:
        """The clusters of equal samples; all but their representatives are dropped."""
