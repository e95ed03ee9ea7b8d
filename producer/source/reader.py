"""Where samples come from, by config."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from producer.source.folder import Folder
from producer.source.parquet import Parquet, ParquetConfig
from producer.source.remote import FsspecStore, RemoteConfig, RemoteStore
from producer.source.remote_folder import RemoteFolder
from producer.source.shard import Reader, SourceError
from producer.source.store import LocalStore
from producer.source.tars import Tars
from producer.source.web import WebStore


def _place(path: Path | str) -> Path | str:
    """A URL as it is, everything else as a path."""
    return path if isinstance(path, Path) or "://" in path else Path(path)


class SourceConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """A set of image-text pairs."""

    kind: Literal["tars", "parquet", "folder"] = "tars"
    # A path or a URL. tars, parquet: a folder of such files, or one; folder: images with .txt captions beside them.
    path: Annotated[str | Path, AfterValidator(_place)]
    name: str = Field(default="main", min_length=1)  # provenance, stored with every sample
    parquet: ParquetConfig = Field(default_factory=ParquetConfig)
    remote: RemoteConfig = Field(default_factory=RemoteConfig)

    def absolute(self) -> "SourceConfig":
        """The same for a process in another folder."""
        return self.model_copy(update={"path": self.path.absolute()}) if isinstance(self.path, Path) else self

    def identity(self) -> list[str]:
        """What decides which samples its shards hold, for names of files made from them."""
        columns = [self.parquet.model_dump_json()] if self.kind == "parquet" else []
        return [self.kind, str(self.path), *columns]


def open_source(config: SourceConfig) -> Reader:
    """The reader for `config`; SourceError if there is nothing at its path, or it must not be asked."""
    if config.kind == "folder":
        return Folder(config.path) if isinstance(config.path, Path) else RemoteFolder(_far(config.path, config))
    store = LocalStore(config.path) if isinstance(config.path, Path) else _far(config.path, config)
    return Tars(store) if config.kind == "tars" else Parquet(store, config.parquet)


def _far(url: str, config: SourceConfig) -> RemoteStore:
    if not url.startswith(("http://", "https://")):
        return FsspecStore(url, config.remote)
    if config.kind == "folder":
        raise SourceError(f"source.path: {url} cannot be listed; over http(s) use tars or parquet, one or a .txt list")
    return WebStore(url, config.remote)
