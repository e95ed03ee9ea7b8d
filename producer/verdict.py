"""From stored scores to the rows of an index: thresholds, duplicates over the whole set, and who dropped what."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from producer.clusters import Age
from producer.index import schema
from producer.neighbours import Hashes
from producer.operator.judgement import (
    NOT_JUDGED,
    CaptionOperator,
    Facts,
    Judgement,
    Operator,
    Score,
    SetOperator,
    TableOperator,
    TableTagger,
    TextOperator,
)
from producer.operator.stage import Stage
from producer.source.reader import SourceConfig


class VerdictError(ValueError):
    """An operator asks for what no other says."""


def decide(
    scores: pa.Table,
    stage: Stage,
    *,
    source: SourceConfig,
    count_tokens: Callable[[Sequence[str]], list[int]],
) -> pa.Table:
    """The index's rows for `scores` (see scoring.py) of `source`, sorted by key.

    A sample is dropped by the first operator of `stage` that says no. Operators that compare samples see only what all
    before them keep, so that a duplicate is never dropped for a sample that is dropped itself.
    """
    scores = scores.sort_by([(name, "ascending") for name in ("key", "shard", "member", "offset")])
    keys = _unique(scores["key"].to_pylist())
    words = _words(scores["captions"].to_pylist(), count_tokens)
    said = {name: [NOT_JUDGED] * len(keys) for name in stage.names}
    values: dict[str, Any] = {name: [None] * len(keys) for name in stage.off}
    of_captions: dict[str, CaptionOperator | TextOperator] = {one.name: one for one in stage.captions}
    of_captions |= {one.name: one for one in stage.texts}
    of_samples = {one.name: one for one in stage.single}
    origin = [source.of(shard)[0] for shard in scores["shard"].to_pylist()]
    spared = {name: np.asarray([one in source.exempt(name) for one in origin], bool) for name in stage.names}
    for name in stage.kinds:
        if name in of_samples:
            judged = _judge(scores, of_samples[name])
            said[name] = [
                one._replace(verdict=None, reason="") if spare else one
                for one, spare in zip(judged, spared[name], strict=True)
            ]
        elif name in of_captions:
            said[name], values[name] = _judge_captions(scores, words, of_captions[name], spared[name])
    cluster = np.arange(len(keys))
    # An edit is its references and words too: many start from one picture and differ little in what they end in.
    comparable = np.asarray(pc.list_value_length(scores["references"]), np.int64) == 0
    for one in stage.whole:
        said[one.name], cluster = _compare(
            scores, keys, one, _kept(said, len(keys)) & comparable & ~spared[one.name], cluster
        )
    columns: dict[str, Any] = {name: scores[name] for name in _COPIED}
    columns |= {
        "key": keys,
        "source": origin,
        "captions": [row.captions for row in words],
        "cluster": [keys[row] for row in cluster],
    }
    shape = schema({name: {"of": kind} for name, kind in stage.kinds.items()})
    for name, kind in stage.kinds.items():
        if kind == "tag":
            there = f"tag.{name}" in scores.column_names and name not in stage.off
            columns[f"tag.{name}"] = scores[f"tag.{name}"] if there else [""] * len(keys)
    none_spared = np.zeros(len(keys), bool)
    for table in stage.tables:
        rows, seen = _look(columns, said, values, table, shape, spared.get(table.name, none_spared))
        if hasattr(table, "tag_table"):
            found: Sequence[Any] = table.tag_table(seen)
            into: list[Any] = columns[f"tag.{table.name}"]
        else:
            found, into = cast(TableOperator, table).judge_table(seen), said[table.name]
        for row, what in zip(rows.tolist(), found, strict=True):
            into[row] = what
    for name in stage.names:
        columns |= _column(name, said[name], values)
    columns |= _decisions([said[name] for name in stage.names], stage.names)
    return pa.table([columns[name] for name in shape.names], schema=shape)


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
    scores: pa.Table, words: list[_Words], one: CaptionOperator | TextOperator, spared: np.ndarray
) -> tuple[list[Judgement], list[list[float | None]]]:
    """Judgements of the samples by what `one` says of their captions, and each row's scores by caption."""
    if f"score.{one.name}" in scores.column_names:
        values, notes = scores[f"score.{one.name}"].to_pylist(), scores[f"note.{one.name}"].to_pylist()
        found = [[Score(*pair) for pair in zip(*row, strict=True)] for row in zip(values, notes, strict=True)]
    else:
        assert not hasattr(one, "score_captions")
        captions = [caption for row in words for caption in row.captions]
        said = one.score_texts(*([caption[name] for caption in captions] for name in ("split", "text", "tokens")))
        each = iter(said)
        found = [[next(each) for _ in row.captions] for row in words]
    judged = [
        NOT_JUDGED if spare else row.hear(one.name, [one.judge(score) for score in mine])
        for row, mine, spare in zip(words, found, spared, strict=True)
    ]
    return judged, [[score.value for score in row] for row in found]


def _look(
    columns: dict[str, Any],
    said: dict[str, list[Judgement]],
    values: dict[str, Any],
    one: TableOperator | TableTagger,
    shape: pa.Schema,
    spared: np.ndarray,
) -> tuple[np.ndarray, pa.Table]:
    """The rows that all before it keep, and the columns of them that a table operator asks for."""
    kept = np.flatnonzero(_kept(said, len(columns["key"])) & ~spared)
    known = columns | {key: value for name in said for key, value in _column(name, said[name], values).items()}
    missing = [name for name in one.needs if name not in known]
    if missing:
        kind, _, asked = missing[0].partition(".")
        raise VerdictError(
            f"operators.{one.name}: reads the {kind} of {asked}, which judges nothing here; "
            f"add [operators.{asked}] to the recipe"
        )
    names = dict.fromkeys((*one.needs, *(name for name in getattr(one, "may", ()) if name in known)))
    table = pa.table({name: pa.chunked_array([known[name]], shape.field(name).type) for name in names})
    return kept, table.take(kept)


_COPIED = ("shard", "member", "offset", "size", "width", "height", "sha256", "phash", "references")


def _unique(keys: list[str]) -> list[str]:
    """Sorted `keys`, the later of equal ones numbered: two shards may spell the same key (a/b.tar, and b/ in a.tar)."""
    taken = set(keys)
    for row in range(1, len(keys)):
        if keys[row] == keys[row - 1]:
            keys[row] = next(name for n in count(2) if (name := f"{keys[row]}~{n}") not in taken)
            taken.add(keys[row])
    return keys


def _judge(scores: pa.Table, one: Operator) -> list[Judgement]:
    values, notes = scores[f"score.{one.name}"].to_pylist(), scores[f"note.{one.name}"].to_pylist()
    return [one.judge(Score(value, note)) for value, note in zip(values, notes, strict=True)]


def _kept(judged: dict[str, list[Judgement]], number: int) -> np.ndarray:
    kept = np.ones(number, bool)
    for column in judged.values():
        kept &= [one.verdict is not False for one in column]
    return kept


def _compare(
    scores: pa.Table, keys: list[str], one: SetOperator, kept: np.ndarray, cluster: np.ndarray
) -> tuple[list[Judgement], np.ndarray]:
    """Judgements by a set operator of the rows in `kept`, and the clusters after it."""
    rows = np.flatnonzero(kept)
    width, height = (np.asarray(scores[name], np.int64)[rows] for name in ("width", "height"))
    hashes = Hashes(*(np.asarray(scores[name], np.uint64)[rows] for name in Hashes._fields))
    clarity = np.asarray(scores["score.clarity"], np.float64)[rows] if "score.clarity" in scores.schema.names else None
    unknown = np.full(len(rows), np.nan)
    age = Age(np.zeros(len(rows), np.int64), width * height, unknown if clarity is None else clarity)
    digests = "".join(one[:32] for one in pc.take(scores["sha256"], rows).to_pylist())
    sha256 = np.frombuffer(bytes.fromhex(digests), ">u8").astype(np.uint64).reshape(-1, 2)
    found = one.cluster(Facts(age, sha256, hashes))
    judged = [NOT_JUDGED] * len(keys)
    joined = np.arange(len(keys))
    joined[rows] = rows[found.representative]
    for position, row in enumerate(rows.tolist()):
        itself = bool(joined[row] == row)
        score = float(found.score[position])
        reason = "" if itself else f"{found.reason} {keys[joined[row]]}"
        judged[row] = Judgement(None if np.isnan(score) else score, itself, reason)
    return judged, joined[cluster]


def _decisions(judged: list[list[Judgement]], names: list[str]) -> dict[str, list[Any]]:
    kept, dropped_by, reason = [], [], []
    for row in zip(*judged, strict=True):
        first = next((number for number, one in enumerate(row) if one.verdict is False), None)
        kept.append(first is None)
        dropped_by.append("" if first is None else names[first])
        reason.append("" if first is None else row[first].reason)
    return {"kept": kept, "dropped_by": dropped_by, "reason": reason}
