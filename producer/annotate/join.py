"""Annotations laid into what scoring found: captions of more splits, and tags.

A shard at a time, on the table of its scores, so that the index's captions are judged and counted with the others.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from producer.annotate.config import AnnotateError
from producer.annotate.entry import fused_from
from producer.annotate.store import Annotation, read_annotations, require
from producer.source.reader import SourceConfig

# Index columns tag.NAME, "" where a sample has no annotation: what kind of picture by source and use, its look, a JSON
# list of its watermarks, and "yes" or "no" to anything that disturbs the view.
TAGS = ("image_type", "image_style", "watermark_list", "abnormal_element")
RAW, RECAPTION, FUSED = "raw", "recaption", "fused"


class Annotations:
    """The annotations in `folders` of samples of `source`; of two folders that speak of a sample the later counts."""

    def __init__(self, folders: Sequence[Path], source: SourceConfig) -> None:
        """AnnotateError where a folder holds none."""
        for folder in folders:
            require(folder)
        self._folders, self._source = folders, source
        self._last: tuple[str, dict[str, Annotation]] = ("", {})
        self._joined = False
        self.tags = TAGS if folders else ()

    def join(self, scores: pa.Table) -> pa.Table:
        """The `scores` of one shard (see producer/scoring.py) with captions and tags of what is annotated in it.

        A picture is known by its bytes, whatever its key. A caption takes the place of one of its split.
        """
        if not self._folders:
            return scores
        found = self._of(scores["shard"][0].as_py()) if scores.num_rows else {}
        images = scores["sha256"].to_pylist()
        edits = pc.list_value_length(scores["references"]).to_pylist()
        # The words of an edit say what to do, not what is seen.
        known = [None if edit else found.get(image) for image, edit in zip(images, edits, strict=True)]
        for name, values in _tags(known).items():
            scores = scores.append_column(name, pa.array(values, pa.string()))
        if not any(known):
            return scores
        self._joined = True
        return _with_captions(scores, known)

    def check(self) -> None:
        """AnnotateError where there are annotations, and none was of any sample."""
        if self._folders and not self._joined:
            raise AnnotateError(
                f"curate.annotations: nothing in {', '.join(map(str, self._folders))} is of a picture of this source; "
                f"was source.name another than {self._source.name!r} when they were annotated?"
            )

    def _of(self, shard: str) -> dict[str, Annotation]:
        """By sha256. Pieces of a folder share its name and come one after the other."""
        if self._last[0] != shard:
            found = dict[str, Annotation]()
            for folder in self._folders:
                found |= read_annotations(folder, self._source.of(shard)[0], shard)
            self._last = shard, found
        return self._last[1]


def _tags(known: Sequence[Annotation | None]) -> dict[str, list[str]]:
    said = [one.tags() if one else ("",) * len(TAGS) for one in known]
    return {f"tag.{name}": [row[number] for row in said] for number, name in enumerate(TAGS)}


def _with_captions(scores: pa.Table, known: Sequence[Annotation | None]) -> pa.Table:
    """`scores` with the captions of `known`, and with their places in what operators said of each caption."""
    before = scores["captions"].to_pylist()
    after = [_added(captions, one) for captions, one in zip(before, known, strict=True)]
    columns: dict[str, list[Any]] = {"captions": after}
    for name in scores.column_names:
        if pa.types.is_list(scores.schema.field(name).type) and name.startswith(("score.", "note.")):
            blank = None if name.startswith("score.") else ""
            said = zip(scores[name].to_pylist(), before, after, strict=True)
            columns[name] = [_moved(values, old, new, blank) for values, old, new in said]
    # How many captions are usable is all that the operator `caption` asks.
    if "score.caption" in scores.column_names:
        columns["score.caption"] = [float(len(captions)) for captions in after]
    for name, values in columns.items():
        at = scores.column_names.index(name)
        scores = scores.set_column(at, scores.schema.field(at), pa.array(values, scores.schema.field(at).type))
    return scores


def _added(captions: list[dict[str, str]], one: Annotation | None) -> list[dict[str, str]]:
    if one is None:
        return captions
    texts = {caption["split"]: caption["text"] for caption in captions} | {RECAPTION: one.caption}
    if fused := one.fused.get(fused_from(texts.get(RAW, ""), one.caption)):
        texts[FUSED] = fused
    return [{"split": split, "text": text} for split, text in sorted(texts.items())]


def _moved(
    values: list[Any] | None, before: list[dict[str, str]], after: list[dict[str, str]], blank: Any
) -> list[Any] | None:
    """What was said of each caption before, at its place now; nothing was said of those that came since."""
    if values is None or len(values) != len(before):
        return values  # the operator failed on the sample
    said = {(caption["split"], caption["text"]): value for caption, value in zip(before, values, strict=True)}
    return [said.get((caption["split"], caption["text"]), blank) for caption in after]
