"""Files over http(s): range requests to checked addresses, never more bytes, time or redirects than were allowed."""

import http.client
import io
import re
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin

from producer.source.address import RefusedError, Resolve, Target, target
from producer.source.remote import DeniedError, GoneError, RemoteConfig, RemoteStore, _checked
from producer.source.retry import TransientError
from producer.source.store import File

_MAX_LIST = 16 << 20  # bytes of a list of shards
_LOOKS = 8  # sizes asked at once
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429)


class Reply(NamedTuple):
    """What came of a range request."""

    body: bytes
    total: int | None  # bytes of the whole file, if the server says
    stamp: str


class WebStore(RemoteStore):
    """One file, or the files named by a list that ends in .txt: one a line, relative to the list, # for a comment."""

    def __init__(self, url: str, config: RemoteConfig, resolve: Resolve = socket.getaddrinfo) -> None:
        _checked(url, config)
        folder, _, self._name = url.partition("?")[0].rpartition("/")
        super().__init__(folder, config)
        self._url, self._resolve = url, resolve
        self._tls: ssl.SSLContext | None = None

    def _list(self, seconds: float) -> list[File]:
        deadline = time.monotonic() + seconds
        if not self._name.endswith(".txt"):
            return [self._look(self._name, deadline)]
        raw = self._ask(self._url, 0, _MAX_LIST + 1, seconds).body
        if len(raw) > _MAX_LIST:
            raise RefusedError(f"the list {self._name} has more than {_MAX_LIST} bytes")
        lines = (line.strip() for line in raw.decode("utf-8", "backslashreplace").splitlines())
        names = sorted({line for line in lines if line and not line.startswith("#")})
        with ThreadPoolExecutor(_LOOKS) as pool:
            return list(pool.map(lambda name: self._look(name, deadline), names))

    def _look(self, name: str, deadline: float) -> File:
        """A file's size and stamp; what a list must not name is a file with a fault."""
        if not re.fullmatch(r"[\w.+=-][\w.+= /-]*", name) or ".." in name.split("/"):
            # Names another place, or is no name: a list only says what lies beside it.
            return File(_flat(name), 0, "", f"refused: the list names {name[:200]!r}, which is not a file below it")
        try:
            reply = self._ask(self._place(name), 0, 1, deadline - time.monotonic())
        except (GoneError, RefusedError) as error:
            if name == self._name:
                raise
            return File(name, 0, "", f"refused: {error}" if isinstance(error, RefusedError) else str(error))
        if reply.total is None:
            raise RefusedError(f"{name}: the server does not answer ranges; copy the source")
        return File(name, reply.total, reply.stamp)

    def _size(self, name: str, seconds: float) -> int:
        return self._look(name, time.monotonic() + seconds).size

    def _fetch(self, name: str, offset: int, size: int, seconds: float) -> bytes:
        return self._ask(self._place(name), offset, size, seconds).body

    def _probe(self, seconds: float) -> None:
        self._ask(self._url, 0, 1, seconds)

    def _place(self, name: str) -> str:
        return self._url if name == self._name else f"{self.root}/{quote(name)}"

    def _ask(self, url: str, offset: int, size: int, seconds: float) -> Reply:
        """At most `size` bytes at `offset` of `url`, through redirects that lead to places as allowed as it is."""
        deadline = time.monotonic() + seconds
        for _ in range(self._config.redirects + 1):
            try:
                where = target(url, self._config.schemes, self._config.hosts, self._resolve)
                answer = self._request(where, offset, size, deadline)
            except (OSError, http.client.HTTPException) as error:
                why = f"no whole answer within {seconds:.1f} s" if isinstance(error, TimeoutError) else str(error)
                raise TransientError(f"{url[:200]}: {why or type(error).__name__}") from None
            if isinstance(answer, Reply):
                return answer
            url = urljoin(url, answer)
        raise RefusedError(f"more than {self._config.redirects} redirects")

    def _request(self, where: Target, offset: int, size: int, deadline: float) -> Reply | str:
        """The answer of one server, or where it sends us."""
        wait = min(self._config.connect_s, deadline - time.monotonic())
        if wait <= 0:
            raise TimeoutError
        raw: socket.socket = socket.create_connection((where.address, where.port), timeout=wait)
        try:
            if where.scheme == "https":
                raw = self._shaken(raw, where.host, deadline)
            raw.settimeout(max(deadline - time.monotonic(), 0.001))
            raw.sendall(_head(where, offset, size))
            response = http.client.HTTPResponse(_Timed(raw, deadline), method="GET")  # type: ignore[arg-type]
            response.begin()
            return _understood(response, offset, size)
        finally:
            raw.close()

    def _shaken(self, raw: socket.socket, host: str, deadline: float) -> socket.socket:
        """`raw` with TLS on it; a handshake that drips is cut off, since its single reads have no common deadline."""
        self._tls = self._tls or ssl.create_default_context()
        timer = threading.Timer(max(deadline - time.monotonic(), 0.001), raw.shutdown, (socket.SHUT_RDWR,))
        timer.daemon = True
        timer.start()
        try:
            return self._tls.wrap_socket(raw, server_hostname=host)
        finally:
            timer.cancel()


def _head(where: Target, offset: int, size: int) -> bytes:
    host = f"[{where.host}]" if ":" in where.host else where.host
    lines = (
        f"GET {where.path} HTTP/1.1",
        f"Host: {host}:{where.port}",
        f"Range: bytes={offset}-{offset + size - 1}",
        "Accept-Encoding: identity",
        "Connection: close",
        "User-Agent: inkstone",
    )
    return "\r\n".join((*lines, "", "")).encode("ascii")


def _understood(response: http.client.HTTPResponse, offset: int, size: int) -> Reply | str:
    status = response.status
    if status in _REDIRECTS:
        return response.headers.get("Location") or ""
    if status in (404, 410):
        raise GoneError(f"HTTP {status}")
    if status in (401, 403, 407):
        raise DeniedError(f"HTTP {status}")
    if status == 416:
        return Reply(b"", None, "")
    if status in _BUSY or status >= 500:
        raise TransientError(f"HTTP {status}")
    if status not in (200, 206) or response.headers.get("Content-Encoding", "identity") != "identity":
        raise RefusedError(f"HTTP {status} {response.headers.get('Content-Encoding', '')} is no answer to a range")
    total = None
    if status == 206:
        found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != offset:
            raise RefusedError(f"answers range {offset}- with {response.headers.get('Content-Range')!r}")
        total = None if found[3] == "*" else int(found[3])
    elif offset:
        raise RefusedError("the server does not answer ranges; copy the source")
    body = _body(response, size)
    stamp = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    return Reply(body, total, f"{total}-{stamp}")


def _body(response: http.client.HTTPResponse, size: int) -> bytes:
    """`size` bytes, or all if there are fewer; of an endless body nothing beyond is read."""
    expected = size if response.length is None else min(size, response.length)
    parts, got = [], 0
    while got < size and (part := response.read(min(1 << 20, size - got))):
        parts.append(part)
        got += len(part)
    if got < expected and response.length is not None:
        raise TransientError(f"ends after {got} of {expected} bytes")
    return b"".join(parts)


class _Timed(io.RawIOBase):
    """The receiving side of a socket, on which everything together must come before a deadline."""

    def __init__(self, raw: socket.socket, deadline: float) -> None:
        super().__init__()
        self._raw, self._deadline = raw, deadline

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        """What HTTPResponse reads from."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._raw.settimeout(left)
        return self._raw.recv_into(into)


def _flat(name: str) -> str:
    """A name for what must not be named, as a key may hold it."""
    return re.sub(r"[^\w.-]+", "_", name)[:200] or "_"
