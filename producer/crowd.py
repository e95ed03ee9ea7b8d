"""What one operator says of the captions of a whole set by comparing them, kept in mapped files, batch by batch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from producer.minhash import WIDTH, sketches
from producer.operator.judgement import CaptionSetOperator
from producer.scratch import Column, Space, filled

# Captions whose sketches are made at a time, in 40 bytes for each byte of theirs.
_TEXTS = 1 << 12


class Crowd:
    """Verdicts of `one` on the captions in `batches`, of the rows in bool `seen` [n]; files lie in `scratch`.

    `batches` are the captions of the index, batch after batch, and the row that each batch starts with.
    """

    def __init__(
        self, one: CaptionSetOperator, batches: list[tuple[int, pa.ListArray]], scratch: Path, rows: int
    ) -> None:
        self._one, self._batches, self._scratch = one, batches, scratch
        self._starts = np.cumsum([0, *(len(captions.flatten()) for _, captions in batches)])
        number = int(self._starts[-1])
        self._score = filled(scratch / f"captions.{one.name}.bin", number, np.float64, np.nan)
        self._dropped = filled(scratch / f"captions.{one.name}.dropped.bin", number, np.bool_, 0)
        self.verdict = filled(scratch / f"said.verdict.{one.name}.bin", rows, np.int8, -1)  # of rows, as elsewhere
        self._why = filled(scratch / f"captions.{one.name}.why.bin", rows, np.float64, np.nan)

    def decide(self, seen: np.ndarray, generation: np.ndarray) -> None:
        """Compare the captions that may still be trained on."""
        found = Column(self._scratch / f"sketches.{self._one.name}.bin", np.uint32)
        ages = Column(self._scratch / f"ages.{self._one.name}.bin", np.int64)
        for _, row, ours, words in self._walk(seen):
            texts = words.field("text").filter(pa.array(ours))
            for first in range(0, len(texts), _TEXTS):
                found.add(sketches(texts[first : first + _TEXTS].to_pylist()))
            ages.add(generation[row[ours]])
        said = self._one.crowds(found.whole().reshape(-1, WIDTH), ages.whole(), Space(self._scratch))
        done = 0
        for start, row, ours, words in self._walk(seen):
            number = int(ours.sum())
            place = start + np.flatnonzero(ours)
            self._score[place] = said.score[done : done + number]
            self._dropped[place] = ~said.kept[done : done + number]
            done += number
            self._judge_rows(row, ours, np.asarray(words.field("kept")), start)

    def _judge_rows(self, row: np.ndarray, ours: np.ndarray, kept: np.ndarray, start: int) -> None:
        """A row is dropped after its last caption."""
        dropped = self._dropped[start : start + len(row)]
        self.verdict[row[ours]] = 1
        first = row[0] if len(row) else 0
        left = np.bincount(row - first, weights=kept & ~dropped)
        gone = np.flatnonzero(dropped)[::-1]  # of a row with several the first one counts
        self._why[row[gone]] = self._score[start + gone]
        lost = row[gone][left[row[gone] - first] == 0]
        self.verdict[lost] = 0

    def _walk(self, seen: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray, pa.StructArray]]:
        """Batch by batch: its first caption's number, each caption's row, whether it is judged, and the captions."""
        for start, (first, captions) in zip(self._starts.tolist(), self._batches, strict=False):
            row = first + np.asarray(captions.value_parent_indices(), np.int64)
            words = captions.flatten()
            yield start, row, np.asarray(words.field("kept")) & seen[row], words

    def reason(self, rows: np.ndarray) -> pa.Array:
        """Why each of `rows` is dropped."""
        return pa.array([self._one.reason(score) for score in self._why[rows].tolist()], pa.string())

    def captions(self, batch: int, captions: pa.ListArray) -> tuple[pa.ListArray, pa.ListArray]:
        """The `captions` of a batch with what was said of them, and their scores."""
        part = slice(int(self._starts[batch]), int(self._starts[batch + 1]))
        dropped, score = np.asarray(self._dropped[part]), np.asarray(self._score[part])
        words = captions.flatten()
        reasons = words.field("reason").to_pylist() if dropped.any() else words.field("reason")
        for place in np.flatnonzero(dropped).tolist():
            reasons[place] = f"{self._one.name}: {self._one.reason(score[place])}"
        fields = {field.name: words.field(number) for number, field in enumerate(words.type)}
        fields["kept"] = pc.and_(fields["kept"], pa.array(~dropped))
        fields["reason"] = pa.array(reasons, pa.string())
        changed = pa.StructArray.from_arrays(list(fields.values()), fields=list(words.type))
        offsets = pc.subtract(captions.offsets, captions.offsets[0])
        scores = pa.array(score, mask=np.isnan(score))
        return pa.ListArray.from_arrays(offsets, changed), pa.ListArray.from_arrays(offsets, scores)
