"""Where samples come from, by config."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from producer.source.folder import Folder
from producer.source.joined import Joined, split_name
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


class OneSourceConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """A set of image-text pairs in one place."""

    kind: Literal["tars", "parquet", "folder"] = "tars"
    # A path or a URL. tars, parquet: a folder of such files, or one; folder: images with .txt captions beside them.
    path: Annotated[str | Path, AfterValidator(_place)]
    parquet: ParquetConfig = Field(default_factory=ParquetConfig)
    remote: RemoteConfig = Field(default_factory=RemoteConfig)

    def absolute(self) -> Self:
        """The same for a process in another folder."""
        return self.model_copy(update={"path": self.path.absolute()}) if isinstance(self.path, Path) else self

    def identity(self) -> list[str]:
        """What decides which samples its shards hold, for names of files made from them."""
        columns = [self.parquet.model_dump_json()] if self.kind == "parquet" else []
        return [self.kind, str(self.path), *columns]


class AlsoConfig(OneSourceConfig, frozen=True):
    """A source read beside the first."""

    # Operators that score its samples but do not drop them: rendered text is plain on purpose.
    exempt: tuple[str, ...] = ()


class SourceConfig(OneSourceConfig, frozen=True):
    """A set of image-text pairs, and others that go with it into one index."""

    name: str = Field(default="main", min_length=1)  # provenance, stored with every sample
    also: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")], AlsoConfig] = {}  # by name

    @model_validator(mode="after")
    def _apart(self) -> "SourceConfig":
        if self.name in self.also:
            raise ValueError(f"source.also.{self.name}: source.name is {self.name} too; call one of them otherwise")
        return self

    def absolute(self) -> Self:
        """The same for a process in another folder."""
        also = {name: one.absolute() for name, one in self.also.items()}
        return super().absolute().model_copy(update={"also": also})

    def of(self, shard: str) -> tuple[str, OneSourceConfig]:
        """The source that the shard called `shard` is of, and its name."""
        name, _ = split_name(shard, self.also)
        return (name, self.also[name]) if name else (self.name, self)

    def require(self, named: Collection[str]) -> None:
        """SourceError if an index with samples of the sources `named` needs one that is not here."""
        first = set(named) - self.also.keys()
        if len(first) > 1:
            missing = sorted(first - {self.name})[0]
            raise SourceError(
                f"source.also: the index has samples of {missing!r}, which is no source here (source.name is "
                f"{self.name!r}); name it as it was curated: source.also.{missing}.path"
            )

    def exempt(self, operator: str) -> frozenset[str]:
        """The names of the sources whose samples `operator` does not drop."""
        return frozenset(name for name, one in self.also.items() if operator in one.exempt)


def open_source(config: SourceConfig) -> Reader:
    """The reader for `config`; SourceError if there is nothing at its path, or it must not be asked."""
    first = _open(config, "source")
    others = {name: _open(one, f"source.also.{name}") for name, one in sorted(config.also.items())}
    return Joined(first, others) if others else first


def _open(config: OneSourceConfig, setting: str) -> Reader:
    try:
        return _opened(config)
    except SourceError as error:
        raise SourceError(str(error).replace("source.path:", f"{setting}.path:", 1)) from None


def _opened(config: OneSourceConfig) -> Reader:
    if config.kind == "folder":
        return Folder(config.path) if isinstance(config.path, Path) else RemoteFolder(_far(config.path, config))
    store = LocalStore(config.path) if isinstance(config.path, Path) else _far(config.path, config)
    return Tars(store) if config.kind == "tars" else Parquet(store, config.parquet)


def _far(url: str, config: OneSourceConfig) -> RemoteStore:
    if not url.startswith(("http://", "https://")):
        return FsspecStore(url, config.remote)
    if config.kind == "folder":
        raise SourceError(f"source.path: {url} cannot be listed; over http(s) use tars or parquet, one or a .txt list")
    return WebStore(url, config.remote)
