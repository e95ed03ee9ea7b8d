"""Retrieved: samples that look like example pictures of the user's own, to fill classes that are too few (stage 6).

What is found gets a tag; what follows is the recipe's: a rule of operators.category may take it for the class, and
recipe.classes gives the class its weight. Nothing is copied, and no sample comes in that curation dropped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa
from pydantic import Field

from producer.digest import hash_folder
from producer.operator.embedding import stored
from producer.operator.encoder import Encoder
from producer.operator.judgement import SIDE, OptIn
from producer.operator.pretrained import content_hash
from producer.picture import Limits, PictureError, decode
from producer.scratch import MEMORY, Space, pieces

# Rows searched at a time: 200 MB of embeddings of 768 numbers.
_ROWS = 1 << 16


class RetrievedError(ValueError):
    """The examples cannot be used; the message says which, and why."""


class RetrievedConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 6
    of = "tag"
    examples: Path | None = None  # a folder with a folder of pictures for each class, of the class's name
    model: Path | None = None  # the encoder of operators.embedding
    # Cosine with the nearest example. Ours: encoders differ, and so do classes; look at what is found just above it.
    min: float = Field(default=0.8, ge=-1, le=1)
    most: int = Field(default=10_000, ge=1)  # samples found of a class; the most alike

    def operator(self) -> "Retrieved":
        assert self.examples is not None and self.model is not None
        return Retrieved(self.examples, self.model, least=self.min, most=self.most)

    def off_reason(self) -> str:
        missing = [name for name in ("examples", "model") if getattr(self, name) is None]
        said = {"examples": "a folder with a folder of pictures for each class", "model": "the encoder of embedding"}
        return f"no {missing[0]}: set operators.retrieved.{missing[0]} to {said[missing[0]]}" if missing else ""

    def content(self) -> dict[str, Any]:
        if self.off_reason():
            return {}
        assert self.examples is not None and self.model is not None
        classes = {folder.name: hash_folder(folder) for folder in _folders(self.examples)}
        return {"examples": classes, "model": content_hash(self.model)}


class Retrieved:
    """Tag: the class of the example whose embedding is nearest by cosine, for the `most` nearest of each class that are
    `least` or nearer; "" for the others.
    """

    name = "retrieved"
    version = 1
    needs: tuple[str, ...] = ("tag.embedding",)
    may: tuple[str, ...] = ()

    def __init__(self, examples: Path, model: Path, *, least: float, most: int) -> None:
        """Check the folders; pictures are read, and weights loaded, with the first table."""
        self._folders = _folders(examples)
        self._encoder = Encoder("operators.retrieved.model", model)
        self._least, self._most = least, most

    def tag_table(self, table: pa.Table, space: Space = MEMORY) -> Iterator[list[str]]:
        found = {row: name for name, rows in self._found(table).items() for row in rows.tolist()}
        for part in pieces(table.num_rows):
            yield [found.get(row, "") for row in range(part.start, part.stop)]

    def _found(self, table: pa.Table) -> dict[str, np.ndarray]:
        """The rows that are most like the examples of each class."""
        faiss = _faiss()
        names, embeddings = self._examples()
        index = faiss.IndexFlatIP(embeddings.shape[1])
        index.add(embeddings)
        best = {folder.name: (np.zeros(0, np.float32), np.zeros(0, np.int64)) for folder in self._folders}
        for start in range(0, table.num_rows, _ROWS):
            rows, found = stored(table["tag.embedding"].slice(start, _ROWS))
            if not len(rows):
                continue
            if found.shape[1] != embeddings.shape[1]:
                raise RetrievedError(
                    f"operators.retrieved.model: gives {embeddings.shape[1]} numbers a picture, the stored embeddings "
                    f"have {found.shape[1]}; name the encoder of operators.embedding"
                )
            cosine, place = (one[:, 0] for one in index.search(found, 1))
            for name, of_class in best.items():
                mine = (names[place] == name) & (cosine >= self._least)
                best[name] = self._nearest(of_class, (cosine[mine], start + rows[mine]))
        return {name: row for name, (_, row) in best.items()}

    def _nearest(self, best: tuple[np.ndarray, ...], more: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
        """The cosines and rows of the `most` nearest of `best` and `more`, whose rows come later."""
        cosine, row = (np.concatenate(both) for both in zip(best, more, strict=True))
        # Of equally near ones the smaller keys: rows are sorted by key.
        near = np.argsort(-cosine, kind="stable")[: self._most]
        return cosine[near], row[near]

    def _examples(self) -> tuple[np.ndarray, np.ndarray]:
        """The class and the embedding of each example."""
        names, pixels = [], []
        for folder in self._folders:
            for path in _pictures(folder):
                names.append(folder.name)
                pixels.append(_read(path))
        return np.asarray(names), np.ascontiguousarray(self._encoder.pictures(pixels), np.float32)


def _faiss() -> Any:
    # Here, since it is not of every install.
    try:
        import faiss
    except ImportError:
        raise RetrievedError(
            "operators.retrieved: searches with faiss, not there; pip install 'inkstone[curation]'"
        ) from None
    return faiss


def _folders(examples: Path) -> list[Path]:
    try:
        found = sorted(one for one in examples.iterdir() if one.is_dir() and not one.name.startswith("."))
    except OSError as error:
        raise RetrievedError(f"operators.retrieved.examples: {examples}: {error.strerror}") from None
    empty = [folder.name for folder in found if not _pictures(folder)]
    if empty or not found:
        raise RetrievedError(
            f"operators.retrieved.examples: {examples}: {empty[0] if empty else 'it'} holds no "
            f"{'pictures' if empty else 'folders'}; put the example pictures of each class into a folder of its name"
        )
    return found


def _pictures(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.is_file() and not one.name.startswith("."))


def _read(path: Path) -> np.ndarray:
    """The example at `path` as operators see a sample: RGB uint8 [y, x, 3], SIDE at most."""
    try:
        pixels = np.asarray(decode(path.read_bytes(), Limits()))
    except PictureError as error:
        raise RetrievedError(f"operators.retrieved.examples: {path}: {error}; take it away, or repair it") from None
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return pixels
    return cv2.resize(
        pixels, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )
