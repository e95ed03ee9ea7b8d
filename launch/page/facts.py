"""The page's data: JSON values and packed arrays, made from a survey. Its reader is script/facts.js."""

import base64
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from launch.page.document import embedded
from launch.page.judges import Judge
from launch.page.nearest import Side
from launch.page.pictures import Pictures
from launch.page.rows import Rows, flags, floats, lengths, of_captions
from launch.page.survey import OTHER, Shares, Survey
from launch.page.words import Captions, Split

# Bytes of the packed arrays that sliders count with, before base64 makes a third more of them.
_PACKED = 2_200_000
# Characters of a caption that are shown, of a reason, a key or a tag; and of captions that find no room any more.
_LONG, _SHORT, _CUT = 1200, 300, 80
# Bytes of all captions together, as they stand in the page.
_CAPTIONS = 1_200_000
# What drops a row, beyond the numbers of judges: 0 is no judge of this index, 1 a bound of the recipe (script/keep.js).
_FAILED = 2
# Lines of a table of shares.
_TOP = 24


def facts(rows: Rows, found: Survey, pictures: Pictures) -> dict[str, Any]:
    """All that the page shows of an index, but for the mixture."""
    return {
        "index": {
            "generation": rows.folder.name,
            "id": rows.said["id"],
            "tokenizer": rows.said["tokenizer"],
            "rows": found.rows,
            "kept": found.kept,
        },
        "judges": [_judge(found, one) for one in found.judges],
        "others": [[_short(name), count, _short(found.example[name])] for name, count in found.others.most_common()],
        "sample": _sample(found),
        "shown": _shown(found, pictures),
        "pictures": pictures.why,
        "captions": {_short(name): _split(split) for name, split in sorted(found.splits.items())},
        "shares": [
            _shares("bucket", found.buckets),
            _shares("source", found.sources),
            *(_shares(name, shares) for name, shares in found.tags.items()),
        ],
    }


def _judge(found: Survey, judge: Judge) -> dict[str, Any]:
    tally = found.tallies[judge.name]
    said: dict[str, Any] = {
        "name": judge.name,
        "kind": judge.kind,
        "stage": judge.stage,
        "off": judge.off,
        "about": judge.about,
        "bounds": judge.bounds if tally.steady else {},
        "beyond": bool(judge.bounds) and not tally.steady,
        "whole_bounds": [key for key in judge.bounds if isinstance(judge.settings[key], int)],
        "mark": judge.mark,
        "implied": {} if tally.steady else tally.lines,
        "steady": tally.steady and bool(judge.bounds),
        "judged": tally.judged,
        "unjudged": tally.unjudged,
        "refused": tally.refused,
        "spared": tally.spared,
        "dropped": tally.dropped,
        "example": _short(found.example.get(judge.name, "")),
        "failed": tally.failed,
        "raised": _short(found.raised.get(judge.name, "")),
    }
    if judge.name not in found.histograms:
        return said
    histogram = found.histograms[judge.name]
    return said | {
        "range": [tally.low, tally.high] if tally.judged else [0, 0],
        "whole": tally.whole,
        "scale": histogram.scale,
        "edges": histogram.edges.tolist(),
        "counts": histogram.counts.tolist(),
        "clipped": histogram.clipped,
        "sides": [_side(side) for side in found.sides[judge.name]],
    }


def _side(side: Side) -> dict[str, Any]:
    items = zip(side.rows.tolist(), side.captions.tolist(), side.values.tolist(), strict=True)
    at = side.at if math.isfinite(side.at) else None
    return {"bound": side.bound, "name": side.name, "at": at, "items": sorted(items, key=lambda item: item[2])}


def _sample(found: Survey) -> dict[str, Any]:
    """The rows that sliders count with, as many as there is room for."""
    table = found.sampled.table
    judged = [one for one in found.judges if one.scores]
    several = sum(one.kind == "captions" for one in judged)
    captions = int(lengths(table["captions"]).sum()) / max(1, table.num_rows)
    a_row = 9 * (len(judged) - several) + 4 + captions * 10 * several
    table = table.slice(0, int(_PACKED / a_row)).combine_chunks()
    words, counts = Captions.of(table["captions"]), lengths(table["captions"])
    numbers = {one.name: number for number, one in enumerate(found.judges)}
    said = [-1 if name == "" else numbers.get(name, len(numbers)) for name in table["dropped_by"].to_pylist()]
    by = np.where(np.asarray(table["failed"], bool), len(numbers) + _FAILED, said)
    columns: dict[str, Any] = {}
    lost = np.zeros(table.num_rows, bool)  # no caption was left for the next judge
    for one in judged:
        name, score, verdicts = one.name, table[f"score.{one.name}"], flags(table[f"verdict.{one.name}"])
        if one.kind == "captions":
            # Where captions were left and nothing was said, the sample's source is exempt, or nothing had a score.
            verdicts = np.where((verdicts < 0) & lost, 1, verdicts)
            lost |= verdicts == 0
        columns[name] = {
            "scores": _packed(of_captions(score, counts) if one.kind == "captions" else floats(score), "<f8"),
            "verdicts": _packed(verdicts, "i1"),
        }
        if one.kind == "captions":
            columns[name]["refused"] = _packed(words.refused_by == name, "i1")
    return {
        "rows": table.num_rows,
        "of": found.rows,
        "captions": _packed(counts, "<i4"),
        "by": _packed(np.asarray(by, np.int16), "<i2"),
        "columns": columns,
    }


def _packed(array: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, np.dtype(kind)).tobytes()).decode()


def _shown(found: Survey, pictures: Pictures) -> dict[str, Any]:
    """The samples with pictures and captions, by row number."""
    scored = [one.name for one in found.judges if one.scores]
    room = _Room(_CAPTIONS)
    shown = {}
    for (number, row), thumbnail in zip(found.shown.items(), pictures.of(list(found.shown.values())), strict=True):
        shown[str(number)] = {
            "key": _short(row["key"]),
            "source": _short(row["source"]),
            "size": [row["width"], row["height"]],
            "bytes": row["size"],
            "kept": row["kept"],
            "by": _short(row["dropped_by"]),
            "reason": _short(row["reason"]),
            "picture": thumbnail.url,
            "why": _short(thumbnail.why),
            "captions": [_caption(one, room) for one in row["captions"] or []],
            "scores": {name: _finite(row[f"score.{name}"]) for name in scored},
            "tags": {one.name: _tag(row[f"tag.{one.name}"] or "") for one in found.judges if one.kind == "tag"},
        }
    return shown


@dataclass
class _Room:
    """Bytes that are left for text."""

    left: int

    def cut(self, text: str) -> str:
        """The beginning of `text` that there is room for."""
        text = text[: _LONG if self.left > 0 else _CUT]
        self.left -= len(embedded(text).encode())
        return text


def _caption(caption: dict[str, Any], room: _Room) -> dict[str, Any]:
    text = caption["text"] or ""
    shown = room.cut(text)
    return {
        "split": _short(caption["split"]),
        "text": shown,
        "more": len(text) - len(shown),
        "tokens": caption["tokens"],
        "kept": bool(caption["kept"]),
        "reason": _short(caption["reason"] or ""),
    }


def _tag(value: str) -> str:
    """A class or JSON as it is; packed numbers are for no reader."""
    return _short(value) if len(value) <= _SHORT or value[0] in "[{" else f"{len(value)} characters"


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return value if value is not None and math.isfinite(value) else None


def _split(split: Split) -> dict[str, Any]:
    return {
        "count": split.count,
        "kept": split.kept,
        "tokens": {"median": split.quantile(0.5), "p95": split.quantile(0.95), "longest": split.longest},
        "reasons": split.reasons.most_common(),
        "shown": _places(split.shown),
        "refused": _places(split.refused),
    }


def _places(side: Side) -> list[list[int]]:
    return [[row, place] for row, place in zip(side.rows.tolist(), side.captions.tolist(), strict=True)]


def _shares(name: str, shares: Shares) -> dict[str, Any]:
    """The most frequent values, and the rest as one."""
    top = [value for value, _ in shares.all.most_common() if value != OTHER][:_TOP]
    return {
        "name": name,
        "different": len(shares.all),
        "values": [[_short(value), shares.all[value], shares.kept[value]] for value in top],
        "rest": [_rest(shares.all, top), _rest(shares.kept, top)],
    }


def _rest(counts: Counter[str], top: Iterable[str]) -> int:
    return sum(counts.values()) - sum(counts[name] for name in top)


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}…"
