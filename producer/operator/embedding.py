"""Embedding: what an encoder sees in each picture, kept with the scores for passes that search by likeness.

A tag holds the embedding in base64 of little-endian float16, unit length: 2 KB a sample with 768 numbers. Cosines of
stored embeddings are right to 0.0005. `stored` gives those of a table as a matrix.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from producer.operator.encoder import Encoder
from producer.operator.judgement import OptIn, Sample
from producer.operator.pretrained import content_hash


class EmbeddingConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 3
    of = "tag"
    runs_model = True
    model: Path | None = None  # a folder with an encoder, see producer/operator/encoder.py; that of siglip is shared

    def operator(self) -> "Embedding":
        assert self.model is not None
        return Embedding(self.model)

    def off_reason(self) -> str:
        return "" if self.model else "no model: set operators.embedding.model to a folder with a SigLIP or CLIP"

    def content(self) -> dict[str, Any]:
        return {"model": content_hash(self.model)} if self.model else {}


class Embedding:
    """Tag: the embedding of the picture, as `pack` writes it; "" where there is no picture."""

    name = "embedding"
    version = 1

    def __init__(self, model: Path) -> None:
        """Check the encoder's folder."""
        self._encoder = Encoder("operators.embedding.model", model)

    def tag(self, samples: Sequence[Sample]) -> list[str]:
        return ["" if one is None else pack(one) for one in self._encoder.embed(samples)]


def pack(embedding: np.ndarray) -> str:
    """An embedding as text."""
    return base64.b64encode(embedding.astype("<f2").tobytes()).decode("ascii")


def stored(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a table's `tag.embedding` that hold one, int64 [n], and the embeddings, float32 [n, width], again of
    unit length: ready for faiss.IndexFlatIP. The width is 0 where no row holds any.
    """
    texts = column.to_pylist()
    rows = np.asarray([row for row, text in enumerate(texts) if text], np.int64)
    if not len(rows):
        return rows, np.zeros((0, 0), np.float32)
    # Of one encoder all have one length, and base64 of whole embeddings can be joined before it is decoded.
    each = [base64.b64decode(texts[row]) for row in rows]
    found = np.frombuffer(b"".join(each), "<f2").reshape(len(rows), -1).astype(np.float32)
    return rows, found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)
