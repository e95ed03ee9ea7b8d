"""The course of a batch of samples: look at the pictures, ask, ask again where the answer cannot be used, fuse."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from PIL import Image

from producer.annotate.config import AnnotateConfig
from producer.annotate.entry import RAW, Entry, Failure, from_json, fused_from, to_json
from producer.annotate.model import Model, Said, Talk, Unanswered
from producer.annotate.prompt import ANNOTATE, Language, fuse, reask
from producer.annotate.reply import Findings, Fused, ReplyError, read
from producer.annotate.store import CAPTION, FUSED
from producer.picture import PictureError, decode
from producer.source.shard import Reader, SourceError

T = TypeVar("T", Findings, Fused)


@dataclass(frozen=True)
class Row:
    """A sample to ask about."""

    key: str
    shard: str
    member: str
    offset: int
    size: int
    sha256: str
    language: Language
    found: str = ""  # the raw caption to fuse with; "": none
    seen: str = ""  # the caption that an earlier run was given; "": ask for it


@dataclass(frozen=True)
class Batch:
    """Samples of one shard that are asked about together."""

    source: str
    shard: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Step:
    """What came of one question about a batch."""

    kind: str  # store.CAPTION or FUSED
    batch: Batch
    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...]


@dataclass
class _Asked(Generic[T]):
    """A question on its way: what was said so far, and what came of it."""

    talk: Talk
    language: Language
    found: T | None = None
    fault: ReplyError | Unanswered | None = None
    raw: str = ""
    calls: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0


class Course:
    """Takes batches through `model`, with pictures from `reader`."""

    def __init__(self, config: AnnotateConfig, model: Model, reader: Reader) -> None:
        self._config, self._model, self._reader = config, model, reader

    def __call__(self, batch: Batch) -> Iterator[Step]:
        """A step for each question, as soon as it is answered. AnnotateError where the model takes no question."""
        seen = {row.key: row.seen for row in batch.rows}
        rows = [row for row in batch.rows if not row.seen]
        if rows:
            step = self._captions(batch, rows)
            yield step
            seen |= {entry.key: entry.caption for entry in step.entries}
        # A sample without a caption has nothing to fuse.
        rows = [row for row in batch.rows if row.found and seen.get(row.key)]
        if rows:
            yield self._fused(batch, rows, seen)

    def _captions(self, batch: Batch, rows: Sequence[Row]) -> Step:
        looked = [(row, self._look(row)) for row in rows]
        failures = [one for _, one in looked if isinstance(one, Failure)]
        shown = [row for row, one in looked if not isinstance(one, Failure)]
        asked: list[_Asked[Findings]] = [
            _Asked(Talk((ANNOTATE[row.language],), picture), row.language)
            for row, picture in looked
            if not isinstance(picture, Failure)
        ]
        self._settle(asked, lambda said: read(said, Findings))
        return _step(CAPTION, batch, shown, asked, failures, [row.sha256 for row in shown])

    def _fused(self, batch: Batch, rows: Sequence[Row], seen: dict[str, str]) -> Step:
        asked: list[_Asked[Fused]] = [
            _Asked(Talk((fuse(row.found, seen[row.key], row.language),)), row.language) for row in rows
        ]
        self._settle(asked, lambda said: read(said, Fused))
        return _step(FUSED, batch, rows, asked, [], [fused_from(row.found, seen[row.key]) for row in rows])

    def _look(self, row: Row) -> Image.Image | Failure:
        """The picture as it is shown: within `pixels`, in its own ratio."""
        try:
            raw = self._reader.read(row.shard, row.member, row.offset, row.size)
            if hashlib.sha256(raw).hexdigest() != row.sha256:
                return Failure(row.key, "picture", "not the bytes that were curated; curate again")
            picture = decode(raw)
        except (SourceError, PictureError) as error:
            return Failure(row.key, "picture", str(error))
        scale = (self._config.pixels / (picture.width * picture.height)) ** 0.5
        if scale >= 1:
            return picture
        size = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))
        return picture.resize(size, Image.Resampling.LANCZOS)

    def _settle(self, asked: Sequence[_Asked[T]], check: Callable[[Said], T]) -> None:
        """Ask all of `asked`, and again those whose answer `check` refuses, `reasks` times at most."""
        left = list(asked)
        for _ in range(self._config.reasks + 1):
            if not left:
                return
            answers = self._model.ask([one.talk for one in left])
            left = [one for one, said in zip(left, answers, strict=True) if _heard(one, said, check)]


def _heard(one: _Asked[T], said: Said | Unanswered, check: Callable[[Said], T]) -> bool:
    """Take an answer in; whether to ask again."""
    if isinstance(said, Unanswered):
        one.fault = said
        return False
    one.calls += 1
    one.prompt_tokens, one.answer_tokens = (
        one.prompt_tokens + said.prompt_tokens,
        one.answer_tokens + said.answer_tokens,
    )
    one.raw, one.fault = said.text[:RAW], None
    try:
        one.found = check(said)
    except ReplyError as error:
        one.fault = error
        one.talk = one.talk.again(one.raw, reask(str(error), one.language))
        return error.again
    return False


def _step(
    kind: str,
    batch: Batch,
    rows: Sequence[Row],
    asked: Sequence[_Asked[Any]],
    failures: list[Failure],
    subjects: Sequence[str],
) -> Step:
    entries = []
    for row, one, subject in zip(rows, asked, subjects, strict=True):
        if isinstance(one.fault, Unanswered):
            failures.append(Failure(row.key, one.fault.reason, one.fault.detail))
            continue
        said: dict[str, Any] = {"reason": "", "detail": ""}
        if isinstance(one.fault, ReplyError):
            said = {"reason": one.fault.reason, "detail": _writable(str(one.fault))}
        elif one.found is not None:
            said = one.found.model_dump() | ({"watermark": tuple(one.found.watermark)} if kind == CAPTION else {})
        counts = {name: getattr(one, name) for name in ("calls", "prompt_tokens", "answer_tokens")}
        entries.append(Entry(row.key, subject, language=one.language, raw=_writable(one.raw), **counts, **said))
    return Step(kind, batch, tuple(entries), tuple(failures))


def _writable(text: str) -> str:
    """`text` as UTF-8 can hold it: JSON spells half a surrogate pair too."""
    return text.encode("utf-8", "replace").decode()


def batch_to_json(batch: Batch) -> str:
    """`batch` for another process."""
    return json.dumps(asdict(batch))


def batch_from_json(text: str) -> Batch:
    """What `batch_to_json` wrote."""
    said = json.loads(text)
    return Batch(said["source"], said["shard"], tuple(Row(**row) for row in said["rows"]))


def steps_to_json(steps: Sequence[Step]) -> str:
    """`steps` without their batch, for another process."""
    return json.dumps(
        [[one.kind, [to_json(e) for e in one.entries], [asdict(f) for f in one.failures]] for one in steps]
    )


def steps_from_json(text: str, batch: Batch) -> list[Step]:
    """What `steps_to_json` wrote of `batch`."""
    return [
        Step(kind, batch, tuple(map(from_json, entries)), tuple(Failure(**one) for one in failures))
        for kind, entries, failures in json.loads(text)
    ]
