"""From stored scores to verdicts on single samples, a score file at a time: thresholds, and who dropped what."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from producer.index import schema
from producer.operator.judgement import (
    FAILED,
    NOT_JUDGED,
    CaptionOperator,
    Judgement,
    Operator,
    Score,
    TextOperator,
    what_failed,
)
from producer.operator.stage import Stage
from producer.source.reader import SourceConfig

# What is known of a sample beside the index, for comparing samples with each other.
COMPARED = ("dhash", "phash_mirror", "dhash_mirror")
_COPIED = ("key", "shard", "member", "offset", "size", "width", "height", "sha256", "phash", "references", *COMPARED)


def judge(
    scores: pa.Table, stage: Stage, *, source: SourceConfig, count_tokens: Callable[[Sequence[str]], list[int]]
) -> pa.Table:
    """What single samples are judged by, for a score file (see scoring.py) of `source`: the columns of `judged_schema`.

    A sample is dropped by the first operator of `stage` that says no, or that raised on it; not by one that its source
    is exempt from.
    """
    number = scores.num_rows
    words = _words(scores["captions"].to_pylist(), count_tokens)
    said = {name: [NOT_JUDGED] * number for name in alone(stage)}
    values: dict[str, Any] = {name: [None] * number for name in stage.off}
    of_captions: dict[str, CaptionOperator | TextOperator] = {one.name: one for one in stage.captions}
    of_captions |= {one.name: one for one in stage.texts}
    of_samples = {one.name: one for one in stage.single}
    origin = [source.of(shard)[0] for shard in scores["shard"].to_pylist()]
    for name in said:
        failed = _failed(scores, name)
        exempt = source.exempt(name)
        spared = {row for row, one in enumerate(origin) if one in exempt}
        if name in of_samples:
            said[name] = _judge(scores, of_samples[name], failed)
        elif name in of_captions:
            said[name], values[name] = _judge_captions(scores, words, of_captions[name], failed, spared)
        for row in spared:
            said[name][row] = Judgement(said[name][row].score, None)
        # Exempt is not left out, whatever comes of asking.
        for row in failed.keys() - spared:
            said[name][row] = Judgement(None, False, f"{FAILED}{failed[row]}")
    columns: dict[str, Any] = {name: scores[name] for name in _COPIED}
    columns |= {"source": origin, "captions": [row.captions for row in words]}
    for name in said:
        if stage.kinds[name] == "tag":
            columns[f"tag.{name}"] = [""] * number if name in stage.off else scores[f"tag.{name}"]
        else:
            columns |= _column(name, said[name], values)
    columns |= _decisions(list(said.values()), list(said))
    shape = judged_schema(stage)
    return pa.table([columns[name] for name in shape.names], schema=shape)


def count_dropped(scores: pa.Table, stage: Stage, *, source: SourceConfig) -> dict[str, int]:
    """The samples of a score file that operators drop, by operator, but for those that go by words alone."""
    judged = judge(scores, replace(stage, texts=()), source=source, count_tokens=lambda texts: [0] * len(texts))
    said_no = pc.and_(pc.invert(judged["kept"]), pc.invert(pc.starts_with(judged["reason"], FAILED)))
    counts = pc.value_counts(judged.filter(said_no)["dropped_by"]).to_pylist()
    return {one["values"]: one["counts"] for one in counts}


def judged_schema(stage: Stage) -> pa.Schema:
    """The index's columns as far as single samples decide them, and COMPARED."""
    shape = schema({name: {"of": stage.kinds[name]} for name in alone(stage)})
    fields = [field for field in shape if field.name != "cluster"]
    return pa.schema([*fields, *(pa.field(name, pa.uint64()) for name in COMPARED)])


def alone(stage: Stage) -> list[str]:
    """The operators that judge samples one by one, in the order of asking; they come before all others."""
    together = {one.name for one in stage.whole} | {one.name for one in stage.tables}
    together |= {one.name for one in stage.crowds}
    return [name for name in stage.kinds if name not in together]


def _failed(scores: pa.Table, name: str) -> dict[int, str]:
    """The rows on which operator `name` raised, and what."""
    if f"failed.{name}" not in scores.column_names:
        return {}
    column = scores[f"failed.{name}"]
    rows = pc.indices_nonzero(pc.fill_null(pc.not_equal(column, ""), False)).to_pylist()
    return {row: column[row].as_py() for row in rows}


def _column(name: str, judged: list[Judgement], values: dict[str, Any]) -> dict[str, Any]:
    return {
        f"score.{name}": values.get(name, [one.score for one in judged]),
        f"verdict.{name}": [one.verdict for one in judged],
        f"reason.{name}": [one.reason for one in judged],
    }


@dataclass
class _Words:
    """The captions of a row as the index will have them, and how many may still be trained on."""

    captions: list[dict[str, Any]]
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.captions)

    def hear(self, name: str, judged: Sequence[Judgement]) -> Judgement:
        """Take note of what operator `name` says of each caption; the sample is dropped after its last one."""
        before = self.left
        for caption, one in zip(self.captions, judged, strict=True):
            if one.verdict is False and caption["kept"]:
                caption["kept"], caption["reason"] = False, f"{name}: {one.reason}"
                self.left -= 1
        if before and not self.left:
            reason = next(one.reason for one in judged if one.verdict is False)
            return Judgement(None, False, reason)
        heard = any(one.verdict is not None for one in judged)
        return Judgement(None, True) if heard and self.left else NOT_JUDGED


def _words(captions: list[list[dict[str, str]]], count_tokens: Callable[[Sequence[str]], list[int]]) -> list[_Words]:
    lengths = iter(count_tokens([one["text"] for row in captions for one in row]))
    return [_Words([{**one, "tokens": next(lengths), "kept": True, "reason": ""} for one in row]) for row in captions]


def _judge_captions(
    scores: pa.Table,
    words: list[_Words],
    one: CaptionOperator | TextOperator,
    failed: dict[int, str],
    spared: Container[int],
) -> tuple[list[Judgement], list[list[float | None] | None]]:
    """Judgements of the samples by what `one` says of their captions, and each row's scores by caption."""
    if f"score.{one.name}" in scores.column_names:
        values, notes = scores[f"score.{one.name}"].to_pylist(), scores[f"note.{one.name}"].to_pylist()
        none: list[Score] = []
        found = [
            none if row in failed else [Score(*pair) for pair in zip(values[row], notes[row], strict=True)]
            for row in range(len(words))
        ]
    else:
        assert not hasattr(one, "score_captions")
        found = _score_texts(one, words, failed)
    judged = [
        NOT_JUDGED
        if row in spared or row in failed
        else said.hear(one.name, [one.judge(score) for score in found[row]])
        for row, said in enumerate(words)
    ]
    return judged, [None if row in failed else [score.value for score in mine] for row, mine in enumerate(found)]


def _score_texts(one: TextOperator, words: list[_Words], failed: dict[int, str]) -> list[list[Score]]:
    """Scores of each row's captions; where `one` raises, of each row by itself, and the cause goes to `failed`."""

    def ask(rows: Sequence[_Words]) -> list[list[Score]]:
        captions = [caption for row in rows for caption in row.captions]
        said = one.score_texts(*([caption[name] for caption in captions] for name in ("split", "text", "tokens")))
        each = iter(said)
        return [[next(each) for _ in row.captions] for row in rows]

    try:
        return ask(words)
    except Exception:
        found = []
        for row, mine in enumerate(words):
            try:
                found += ask([mine])
            except Exception as error:
                failed[row] = what_failed(error)
                found.append([])
        return found


def _judge(scores: pa.Table, one: Operator, failed: Container[int]) -> list[Judgement]:
    values, notes = scores[f"score.{one.name}"].to_pylist(), scores[f"note.{one.name}"].to_pylist()
    pairs = enumerate(zip(values, notes, strict=True))
    return [NOT_JUDGED if row in failed else one.judge(Score(*pair)) for row, pair in pairs]


def _decisions(judged: list[list[Judgement]], names: list[str]) -> dict[str, list[Any]]:
    kept, dropped_by, reason = [], [], []
    for row in zip(*judged, strict=True):
        first = next((number for number, one in enumerate(row) if one.verdict is False), None)
        kept.append(first is None)
        dropped_by.append("" if first is None else names[first])
        reason.append("" if first is None else row[first].reason)
    return {"kept": kept, "dropped_by": dropped_by, "reason": reason}
