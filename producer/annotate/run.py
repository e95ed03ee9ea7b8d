"""Annotation of an index's kept samples: what is not on the shelf is asked, and kept as soon as it is answered."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from producer.annotate import local, server
from producer.annotate.config import AnnotateConfig, AnnotateError
from producer.annotate.course import Batch, Row, Step
from producer.annotate.entry import Entry, Failure, fused_from
from producer.annotate.prompt import ANNOTATE, FUSE, language
from producer.annotate.store import CAPTION, FUSED, Shelf, open_shelf
from producer.index import Index
from producer.lock import exclusive
from producer.operator.caption import Caption
from producer.output_folder import make_folder
from producer.source.reader import SourceConfig

_LOCK_TIMEOUT_S = 10.0
_RAW = "raw"  # the split of captions found beside images
# Of fewer answers to a question a share of unusable ones is no reason to stop: they may be the pictures of one shard.
_FEW = 256
_ASKED = {CAPTION: "a caption", FUSED: "a fused caption"}
EDIT, LIMIT = "an edit, whose words say what to do", "over annotate.limit"


class Progress(NamedTuple):
    """How far a run is."""

    done: int  # samples that are annotated or failed, in earlier runs too
    total: int
    asked: int  # samples that this run got an answer for
    failed: dict[str, int]  # reason -> samples


@dataclass
class Funnel:
    """What came in and what became of it: seen = annotated + the sums of failed and skipped."""

    generation: str  # id of the index generation
    annotator: str  # name of its folder
    seen: int = 0  # kept samples, and with annotate.uncaptioned those without a caption
    annotated: int = 0
    before: int = 0  # of those, in earlier runs
    failed: Counter[str] = field(default_factory=Counter)  # reason -> samples
    skipped: Counter[str] = field(default_factory=Counter)  # why not asked about -> samples
    example: dict[str, str] = field(default_factory=dict)  # reason -> one "key: detail"
    fused: int = 0  # of the annotated, with a fused caption
    fused_failed: Counter[str] = field(default_factory=Counter)
    calls: int = 0  # questions of this run
    prompt_tokens: int = 0
    answer_tokens: int = 0


@dataclass
class _Answers:
    """What came in this run of one question."""

    number: int = 0
    unusable: Counter[str] = field(default_factory=Counter)  # reason -> answers
    example: dict[str, str] = field(default_factory=dict)  # reason -> one "key: detail"

    def hear(self, entry: Entry) -> None:
        self.number += 1
        if entry.reason:
            self.unusable[entry.reason] += 1
            self.example.setdefault(entry.reason, f"{entry.key}: {entry.detail}")

    def check(self, kind: str, most: float) -> None:
        """AnnotateError where more than the share `most` cannot be used."""
        number = self.unusable.total()
        if self.number < _FEW or number <= most * self.number:
            return
        ((reason, times),) = self.unusable.most_common(1)
        raise AnnotateError(
            f"annotate.max_failed: {number} of {self.number} answers to the question for {_ASKED[kind]} cannot be "
            f"used, more than {most:.1%}; {times} for {reason} ({self.example[reason]}); what was answered is kept; "
            "mend the model or its settings, or allow more; annotate.retry_failed = true asks again about what failed"
        )


class Pool(Protocol):
    """Who asks: threads.Threads or actors.Actors, each a context that starts and ends what it needs."""

    def __enter__(self) -> "Pool":
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """End what is on its way."""

    def run(self, batches: Iterator[Batch]) -> Iterator[list[Step | Batch]]:
        """What comes of `batches`: steps, and each batch, or its parts, when it is over."""

    def rest(self) -> list[Step | Batch]:
        """What came and was not given out yet."""


def annotate(
    source: SourceConfig,
    config: AnnotateConfig,
    index: Path,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Funnel:
    """Ask about every kept sample of the latest generation of `index` that lacks an annotation.

    Interrupted or killed, nothing is lost but what was on its way. Raises AnnotateError, IndexFormatError, SourceError,
    FolderError, LockError or ClusterError.
    """
    model = _identity(config)
    found = Index.open(index)
    source.require(found.table["source"].unique().to_pylist())
    out = config.folder(index)
    make_folder("annotate.out", out)
    with exclusive(out / ".lock", timeout_s=_LOCK_TIMEOUT_S):
        shelves = {
            CAPTION: open_shelf(out, CAPTION, model | {"questions": ANNOTATE, "pixels": config.pixels}),
            FUSED: open_shelf(out, FUSED, model | {"questions": FUSE}),
        }
        work = _Work(config, found, shelves, progress)
        try:
            batches = work.batches()
            # Where nothing is left to ask, no model is loaded and no server needed.
            if first := next(batches, None):
                work.run(_pool(config, source), chain([first], batches))
        finally:
            for shelf in shelves.values():
                shelf.close()
    return work.funnel


def _identity(config: AnnotateConfig) -> dict[str, Any]:
    """What answers depend on besides the question."""
    if config.server:
        model = server.identity(config.server)
    elif config.local:
        local.check_folder(config.local.model)
        model = local.identity(config.local)
    else:
        raise AnnotateError("annotate: nobody to ask: set annotate.server.url and .model, or annotate.local.model")
    return model | {"temperature": config.temperature, "max_tokens": config.max_tokens}


def _pool(config: AnnotateConfig, source: SourceConfig) -> Pool:
    # Here, since a run that finds all answers needs neither Ray nor a server.
    if config.server:
        from producer.annotate.threads import Threads

        return Threads(config, source)
    from producer.annotate.actors import Actors

    assert config.local
    here = config.local.model_copy(update={"model": config.local.model.absolute()})
    return Actors(config.model_copy(update={"local": here}), source.absolute())


class _Work:
    """One run: what to ask, what was heard, and the counts of both."""

    def __init__(
        self, config: AnnotateConfig, index: Index, shelves: dict[str, Shelf], progress: Callable[[Progress], None]
    ) -> None:
        self._config, self._shelves, self._progress = config, shelves, progress
        self.funnel = Funnel(index.id, shelves[CAPTION].folder.name)
        self._rows = _wanted(index.table, config)
        self._begun = 0  # samples whose captions this run asks for
        self._left: Counter[tuple[str, str]] = Counter()  # samples of a shard that are still asked about
        self._silent = 0  # samples in a row without an answer
        self._last_silence = ""
        self._asked = 0
        self._answers = {CAPTION: _Answers(), FUSED: _Answers()}

    def batches(self) -> Iterator[Batch]:
        """What lacks an annotation, shard by shard; what lacks none is counted on the way."""
        size = self._config.local.batch if self._config.local else 1
        for (source, shard), rows in _shards(self._rows):
            wanted = self._missing(source, shard, rows)
            if wanted:
                self._left[source, shard] = len(wanted)
            else:
                # An earlier run may have been killed between a shard's last answer and this.
                self._finish(source, shard)
            for first in range(0, len(wanted), size):
                yield Batch(source, shard, tuple(wanted[first : first + size]))
            self._tell()

    def run(self, pool: Pool, batches: Iterator[Batch]) -> None:
        """Have `pool` ask all `batches`."""
        with pool:
            try:
                for came in pool.run(batches):
                    self._take(came)
                    if self._silent >= self._config.give_up:
                        raise AnnotateError(
                            f"annotate.give_up: {self._silent} samples in a row got no answer, the last "
                            f"{self._last_silence}; what is done is kept, run it again to go on"
                        )
                    for kind, answers in self._answers.items():
                        answers.check(kind, self._config.max_failed)
            finally:
                # Answers that came while the run was ended are paid for too.
                self._take(pool.rest())

    def _missing(self, source: str, shard: str, rows: Sequence[dict[str, Any]]) -> list[Row]:
        known = self._shelves[CAPTION].read(source, shard)
        fused = self._shelves[FUSED].read(source, shard) if self._config.fuse else {}
        wanted = []
        for row in rows:
            self.funnel.seen += 1
            entry = known.get(row["sha256"])
            if row["references"]:
                self.funnel.skipped[EDIT] += 1
            elif entry and not (entry.reason and self._config.retry_failed):
                self._count(entry, before=True)
                if not entry.reason and (asked := self._to_fuse(row, entry, fused)):
                    wanted.append(asked)
            elif self._config.limit and self._begun >= self._config.limit:
                self.funnel.skipped[LIMIT] += 1
            else:
                self._begun += 1
                wanted.append(_row(row, language(row["key"], self._config.chinese), self._found(row)))
        return wanted

    def _to_fuse(self, row: dict[str, Any], caption: Entry, fused: dict[str, Entry]) -> Row | None:
        found = self._found(row)
        if not found:
            return None
        entry = fused.get(fused_from(found, caption.caption))
        if entry and not (entry.reason and self._config.retry_failed):
            self._count_fused(entry)
            return None
        return _row(row, "zh" if caption.language == "zh" else "en", found, caption.caption)

    def _found(self, row: dict[str, Any]) -> str:
        """The caption found beside the image, where one is to be fused."""
        texts = (one["text"] for one in row["captions"] if one["split"] == _RAW)
        return next(texts, "") if self._config.fuse else ""

    def _take(self, came: Sequence[Step | Batch]) -> None:
        """Keep what came, all of it at once, then count it."""
        kept: dict[tuple[str, str, str], list[tuple[Entry, ...]]] = {}
        for one in came:
            if isinstance(one, Step) and one.entries:
                kept.setdefault((one.kind, one.batch.source, one.batch.shard), []).append(one.entries)
        for (kind, source, shard), entries in kept.items():
            self._shelves[kind].record(source, shard, entries)
        for one in came:
            if isinstance(one, Step):
                self._hear(one)
            else:
                self._left[one.source, one.shard] -= len(one.rows)
                if not self._left[one.source, one.shard]:
                    self._finish(one.source, one.shard)
        if came:
            self._tell()

    def _hear(self, step: Step) -> None:
        for entry in step.entries:
            self._silent = 0
            self._answers[step.kind].hear(entry)
            self._asked += step.kind == CAPTION
            self.funnel.calls += entry.calls
            self.funnel.prompt_tokens += entry.prompt_tokens
            self.funnel.answer_tokens += entry.answer_tokens
            if step.kind == CAPTION:
                self._count(entry)
            else:
                self._count_fused(entry)
        for failure in step.failures:
            self._silent += 1
            self._last_silence = f"{failure.key}: {failure.reason}: {failure.detail}"
            counts = self.funnel.failed if step.kind == CAPTION else self.funnel.fused_failed
            self._fail(counts, failure)

    def _count(self, entry: Entry, *, before: bool = False) -> None:
        if entry.reason:
            self._fail(self.funnel.failed, entry)
        else:
            self.funnel.annotated += 1
            self.funnel.before += before

    def _count_fused(self, entry: Entry) -> None:
        if entry.reason:
            self._fail(self.funnel.fused_failed, entry)
        else:
            self.funnel.fused += 1

    def _fail(self, counts: Counter[str], one: Entry | Failure) -> None:
        counts[one.reason] += 1
        self.funnel.example.setdefault(one.reason, f"{one.key}: {one.detail}")

    def _finish(self, source: str, shard: str) -> None:
        for shelf in self._shelves.values():
            shelf.finish(source, shard)
        self._left.pop((source, shard), None)

    def _tell(self) -> None:
        done = self.funnel.annotated + self.funnel.failed.total()
        self._progress(Progress(done, self._rows.num_rows, self._asked, dict(self.funnel.failed)))


def _row(row: dict[str, Any], words: Any, found: str, seen: str = "") -> Row:
    place = {name: row[name] for name in ("key", "shard", "member", "offset", "size", "sha256")}
    return Row(**place, language=words, found=found, seen=seen)


_COLUMNS = ["key", "source", "shard", "member", "offset", "size", "sha256", "captions", "references"]


def _wanted(table: pa.Table, config: AnnotateConfig) -> pa.Table:
    """The rows of an index that are to be annotated, by shard."""
    wanted = pc.fill_null(table["kept"], False)
    if config.uncaptioned:
        wanted = pc.or_(wanted, pc.equal(table["dropped_by"], Caption.name))
    order = [(name, "ascending") for name in ("source", "shard", "key")]
    return table.select(_COLUMNS).filter(wanted).sort_by(order)


def _shards(rows: pa.Table) -> Iterator[tuple[tuple[str, str], list[dict[str, Any]]]]:
    """The rows of each shard, one shard's as Python's at a time."""
    places = list(zip(rows["source"].to_pylist(), rows["shard"].to_pylist(), strict=True))
    first = 0
    for last in range(1, len(places) + 1):
        if last == len(places) or places[last] != places[first]:
            yield places[first], rows.slice(first, last - first).to_pylist()
            first = last
