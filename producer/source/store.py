"""Where files lie: what readers need of a folder or of a store behind a URL, and the local one."""

from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from producer.source.shard import SourceError, UnreadableError, is_inside, is_text


class File(NamedTuple):
    """A file below a store's root."""

    name: str  # relative to the root, parts joined by "/"
    size: int
    stamp: str  # another one when the content may have changed
    fault: str = ""  # why it must not be opened


class Store(Protocol):
    """Files below a root."""

    root: str  # for messages

    def files(self, ending: str) -> list[File]:
        """Those whose names end so, by name; SourceError if the root is not there or cannot be listed."""

    def open(self, name: str) -> BinaryIO:
        """A file to read through once, seeking now and then."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, fewer where the file ends; UnreadableError or SourceError as `Reader.read`."""


class LocalStore:
    """A folder, or one file in it."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise SourceError(f"source.path: {path} does not exist; set it to a file or a folder of them")
        self._folder = path if path.is_dir() else path.parent
        self._only = None if path.is_dir() else path
        self.root = str(self._folder)

    def files(self, ending: str) -> list[File]:
        """Files below the root at any depth."""
        found = [self._only] if self._only else sorted(self._folder.rglob(f"*{ending}"))
        return [self._file(path) for path in found if path.is_file()]

    def _file(self, path: Path) -> File:
        name, found = path.relative_to(self._folder).as_posix(), path.stat()
        if not is_text(name):
            raise SourceError(f"source.path: the file name {name!r} is not UTF-8; rename it")
        return File(name, found.st_size, f"{found.st_size}-{found.st_mtime_ns}")

    def open(self, name: str) -> BinaryIO:
        """The file as it is."""
        return self._path(name).open("rb")

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a file."""
        path = self._path(name)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError as error:
            # A whole shard, which may be on its way back.
            raise SourceError(f"{path}: {error.strerror}; curate again if the source moved") from None
        except OSError as error:
            raise UnreadableError(f"{path}: cannot be read: {error.strerror}") from None

    def _path(self, name: str) -> Path:
        if not is_inside(name):
            raise SourceError(f"{name}: not below {self.root}")
        return self._folder / name
