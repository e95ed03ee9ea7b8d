"""From stored scores to the rows of an index: thresholds, duplicates over the whole set, and who dropped what."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from producer.clusters import Age
from producer.index import schema
from producer.neighbours import Hashes
from producer.operator.judgement import NOT_JUDGED, Facts, Judgement, Operator, Score, SetOperator
from producer.operator.stage import Stage


def decide(
    scores: pa.Table, stage: Stage, *, source: str, count_tokens: Callable[[Sequence[str]], list[int]]
) -> pa.Table:
    """The index's rows for `scores` (see scoring.py), sorted by key.

    A sample is dropped by the first operator of `stage` that says no. Operators that compare samples see only what all
    before them keep, so that a duplicate is never dropped for a sample that is dropped itself.
    """
    scores = scores.sort_by([(name, "ascending") for name in ("key", "shard", "member", "offset")])
    keys = _unique(scores["key"].to_pylist())
    judged = {one.name: _judge(scores, one) for one in stage.single}
    judged |= {name: [NOT_JUDGED] * len(keys) for name in stage.off}
    cluster = np.arange(len(keys))
    # An edit is its references and words too: many start from one picture and differ little in what they end in.
    comparable = np.asarray(pc.list_value_length(scores["references"]), np.int64) == 0
    for one in stage.whole:
        judged[one.name], cluster = _compare(scores, keys, one, _kept(judged, len(keys)) & comparable, cluster)
    columns: dict[str, Any] = {name: scores[name] for name in _COPIED}
    columns |= {
        "key": keys,
        "source": [source] * len(keys),
        "captions": _captions(scores["captions"].to_pylist(), count_tokens),
        "cluster": [keys[row] for row in cluster],
    }
    for name in stage.names:
        columns[f"score.{name}"] = [one.score for one in judged[name]]
        columns[f"verdict.{name}"] = [one.verdict for one in judged[name]]
        columns[f"reason.{name}"] = [one.reason for one in judged[name]]
    columns |= _decisions([judged[name] for name in stage.names], stage.names)
    shape = schema(stage.names)
    return pa.table([columns[name] for name in shape.names], schema=shape)


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


def _captions(
    captions: list[list[dict[str, str]]], count_tokens: Callable[[Sequence[str]], list[int]]
) -> list[list[dict[str, Any]]]:
    lengths = iter(count_tokens([one["text"] for row in captions for one in row]))
    return [[{**one, "tokens": next(lengths)} for one in row] for row in captions]


def _decisions(judged: list[list[Judgement]], names: list[str]) -> dict[str, list[Any]]:
    kept, dropped_by, reason = [], [], []
    for row in zip(*judged, strict=True):
        first = next((number for number, one in enumerate(row) if one.verdict is False), None)
        kept.append(first is None)
        dropped_by.append("" if first is None else names[first])
        reason.append("" if first is None else row[first].reason)
    return {"kept": kept, "dropped_by": dropped_by, "reason": reason}
