"""Stores behind a URL: S3 and whatever else fsspec knows, with deadlines, bounded retries and a fair blame.

An image that stays unreadable is its own fault only if the store answers otherwise; without credentials, bucket or
network nothing is anyone's fault but the source's, and no sample is ever left out for it.
"""

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar, cast

from pydantic import BaseModel, Field

from producer.source.address import RefusedError, scheme_of
from producer.source.ranged import RangedFile
from producer.source.retry import GaveUpError, TransientError, persist
from producer.source.shard import SourceError, UnreadableError, is_inside
from producer.source.store import File

T = TypeVar("T")

# Of botocore, by name, since it is there only where s3fs is.
_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"}
    | {"ProfileNotFound", "SSOTokenLoadError", "UnauthorizedSSOTokenError"}
)
_ONE_FILE = (".tar", ".parquet")
_FIX = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or source.remote.anonymous for a public bucket"


class RemoteConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """How stores behind URLs are asked. Credentials come from the environment, never from settings."""

    schemes: tuple[str, ...] = ("s3", "gs", "https")  # what may be asked at all
    hosts: tuple[str, ...] = ()  # host or host:port over http(s) that need not be on the open internet
    endpoint: str | None = None  # URL of an S3-compatible store; none: Amazon's, or AWS_ENDPOINT_URL
    anonymous: bool = False  # a public bucket, asked without credentials
    connect_s: float = Field(default=10.0, gt=0)  # for a connection
    request_s: float = Field(default=30.0, gt=0)  # for one request, to its last byte
    list_s: float = Field(default=600.0, gt=0)  # for the listing of all files
    deadline_s: float = Field(default=120.0, gt=0)  # for one read with all its tries
    tries: int = Field(default=8, ge=1)
    redirects: int = Field(default=3, ge=0)  # that one http(s) request follows


class GoneError(Exception):
    """There is no such file."""


class DeniedError(Exception):
    """The store does not let us."""


class RemoteStore(ABC):
    """What stores behind URLs have in common."""

    def __init__(self, url: str, config: RemoteConfig) -> None:
        self.root = url.rstrip("/")
        self._config = config
        self._sizes: dict[str, int] = {}
        self._scanned: dict[str, RangedFile] = {}
        self._lock = threading.Lock()
        self._answered = ""  # the file that was read last

    def files(self, ending: str) -> list[File]:
        """All files below the root whose names end so."""
        try:
            found = persist(self._list, tries=self._config.tries, deadline_s=self._config.list_s)
        except (GoneError, DeniedError, RefusedError, GaveUpError) as error:
            raise SourceError(f"source.path: {self.root}: {error}") from None
        for file in found:
            self._sizes[file.name] = file.size
        kept = [file if is_inside(file.name) else _refused(file) for file in found if file.name.endswith(ending)]
        return sorted(kept)

    def open(self, name: str) -> BinaryIO:
        """A file to scan; short reads of it go through its blocks as long as it is open."""
        if not is_inside(name):
            raise SourceError(f"{name}: not below {self.root}")
        size = self._sizes.get(name)
        if size is None:
            size = self._sizes[name] = self._try(name, lambda left: self._size(name, left))
        file = RangedFile(lambda offset, count: self._fetched(name, offset, count), size, lambda: self._forget(name))
        with self._lock:
            self._scanned[name] = file
        return cast(BinaryIO, file)

    def _forget(self, name: str) -> None:
        with self._lock:
            self._scanned.pop(name, None)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """One range request, unless the file is being scanned."""
        if not is_inside(name):
            raise SourceError(f"{name}: not below {self.root}")
        with self._lock:
            scanned = self._scanned.get(name)
        if scanned is not None and not scanned.closed and offset + size <= self._sizes[name]:
            return scanned.pread(offset, size)
        return self._fetched(name, offset, size)

    def _fetched(self, name: str, offset: int, size: int) -> bytes:
        if not size:
            return b""
        raw = self._try(name, lambda left: self._fetch(name, offset, size, min(left, self._config.request_s)))
        if len(raw) > size:
            raise UnreadableError(f"{self.root}/{name}: answers {size} bytes with {len(raw)}")
        self._answered = name
        return raw

    def _try(self, name: str, call: Callable[[float], T]) -> T:
        """What `call` gives, tried again; where it cannot, the file is blamed only if the store answers otherwise."""
        try:
            return persist(call, tries=self._config.tries, deadline_s=self._config.deadline_s)
        except (GoneError, DeniedError, GaveUpError) as error:
            why = str(error)
        except RefusedError as error:
            raise UnreadableError(f"{self.root}/{name}: refused: {error}") from None
        try:
            self._prove()
        except (GoneError, DeniedError, TransientError, RefusedError) as error:
            raise SourceError(f"source.path: {self.root}: cannot be read now: {error}") from None
        raise UnreadableError(f"{self.root}/{name}: cannot be read: {why}")

    def _prove(self) -> None:
        """Raise unless the store answers for the file that was read last, or for its root."""
        if self._answered:
            try:
                self._fetch(self._answered, 0, 1, self._config.request_s)
                return
            except (GoneError, DeniedError, TransientError):
                pass
        self._probe(self._config.request_s)

    @abstractmethod
    def _list(self, seconds: float) -> list[File]:
        """All files; GoneError, DeniedError, RefusedError or TransientError, as each of these."""

    @abstractmethod
    def _size(self, name: str, seconds: float) -> int:
        """Bytes of a file."""

    @abstractmethod
    def _fetch(self, name: str, offset: int, size: int, seconds: float) -> bytes:
        """`size` bytes, fewer where the file ends, in one try."""

    @abstractmethod
    def _probe(self, seconds: float) -> None:
        """Ask for something that is there if anything is."""


class FsspecStore(RemoteStore):
    """A folder, or one file, behind any URL that fsspec has a package for."""

    def __init__(self, url: str, config: RemoteConfig) -> None:
        scheme = _checked(url, config)
        folder, _, last = url.rstrip("/").rpartition("/")
        # Told by its name, since a worker does not list.
        self._only = last if last.endswith(_ONE_FILE) else ""
        super().__init__(folder if self._only else url, config)
        self._fs = _filesystem(scheme, config)
        self._path = str(self._fs._strip_protocol(self.root))

    def _list(self, seconds: float) -> list[File]:
        where = f"{self._path}/{self._only}" if self._only else self._path
        found = self._call(seconds, self._fs.find, where, detail=True)
        if not found:
            # An empty folder and a missing bucket both list nothing.
            self._call(seconds, self._fs.info, where)
        skip = len(self._path) + 1
        return [
            File(path[skip:], int(said["size"] or 0), _stamp(said))
            for path, said in found.items()
            if said["type"] == "file" and not path.endswith("/")
        ]

    def _size(self, name: str, seconds: float) -> int:
        return int(self._call(seconds, self._fs.info, f"{self._path}/{name}")["size"])

    def _fetch(self, name: str, offset: int, size: int, seconds: float) -> bytes:
        path = f"{self._path}/{name}"
        return bytes(self._call(seconds, self._fs.cat_file, path, start=offset, end=offset + size))

    def _probe(self, seconds: float) -> None:
        self._call(seconds, self._fs.info, self._path)

    def _call(self, seconds: float, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`function` of the filesystem within `seconds`, its many kinds of errors sorted into ours."""
        try:
            if self._fs.async_impl:
                return function(*args, timeout=seconds, **kwargs)
            return _within(seconds, function, *args, **kwargs)
        except FileNotFoundError:
            raise GoneError(f"{args[0]}: there is no such bucket, folder or file") from None
        except PermissionError as error:
            raise DeniedError(f"access denied ({str(error)[:200]}); {_FIX}") from None
        except (TimeoutError, _timeout()) as error:
            raise TransientError(f"no whole answer within {seconds:.1f} s") from error
        except Exception as error:
            # Filesystems raise what their client libraries do: OSError, ClientError, aiohttp's, ...
            if type(error).__name__ in _CREDENTIALS:
                raise DeniedError(f"no credentials ({error}); {_FIX}") from None
            if _is_past_the_end(error):
                return b""
            raise TransientError(str(error)[:300] or type(error).__name__) from error


def _checked(url: str, config: RemoteConfig) -> str:
    try:
        return scheme_of(url, config.schemes)
    except RefusedError as error:
        raise SourceError(f"source.path: {_without_secrets(url)!r}: refused: {error}") from None


def _without_secrets(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return (scheme + separator + "...@" * ("@" in host) + host.rpartition("@")[2] + slash + path)[:200]


def _filesystem(scheme: str, config: RemoteConfig) -> Any:
    import fsspec

    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme in ("s3", "s3a"):
        options |= {
            "anon": config.anonymous,
            "endpoint_url": config.endpoint,
            # Tries are ours, so that their number and deadline hold.
            "config_kwargs": {
                "connect_timeout": config.connect_s,
                "read_timeout": config.request_s,
                "retries": {"total_max_attempts": 1},
            },
        }
    try:
        found = fsspec.filesystem(scheme, **options)
    except (ImportError, ValueError) as error:
        raise SourceError(f"source.path: {scheme}:// cannot be opened: {error}") from None
    if hasattr(found, "retries"):
        found.retries = 1
    return found


def _timeout() -> type[BaseException]:
    from fsspec.exceptions import FSTimeoutError

    return cast(type[BaseException], FSTimeoutError)


def _is_past_the_end(error: Exception) -> bool:
    """Whether a store refused a range because the file has become shorter than it."""
    return "InvalidRange" in str(error) or "InvalidRange" in str(error.__cause__) or "not satisfiable" in str(error)


def _within(seconds: float, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """`function` on a thread of its own; TimeoutError after `seconds`, when the thread is left to end by itself."""
    said: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            said.put((True, function(*args, **kwargs)))
        except BaseException as error:
            said.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        fine, found = said.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if not fine:
        raise found
    return cast(T, found)


def _stamp(said: dict[str, Any]) -> str:
    changed = next(
        (said[name] for name in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created") if said.get(name)), ""
    )
    return f"{said['size']}-{changed}"


def _refused(file: File) -> File:
    return file._replace(fault=f"refused: the name {file.name[:200]!r} leads out of the source")
