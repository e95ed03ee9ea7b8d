"""Where samples come from, by config."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from producer.source.folder import Folder
from producer.source.shard import Reader
from producer.source.tars import Tars


class SourceConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """A set of image-text pairs."""

    kind: Literal["tars", "folder"] = "tars"
    path: Path  # tars: a folder of .tar files, or one; folder: images with .txt captions beside them
    name: str = Field(default="main", min_length=1)  # provenance, stored with every sample


def open_source(config: SourceConfig) -> Reader:
    """The reader for `config`; SourceError if there is nothing at its path."""
    return Tars(config.path) if config.kind == "tars" else Folder(config.path)
