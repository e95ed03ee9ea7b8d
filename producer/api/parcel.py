"""A unit by a plain socket: its bytes, or on one machine the memory that they lie in. Flight's way costs twice as much.

    client -> server    u32 n, then n bytes of JSON {"token", "unit"}; at most REQUEST_LIMIT
    server -> client    one byte and u64 n: what follows, and how much of it
        b   n bytes: an Arrow IPC stream of one record batch
        m   nothing: a sealed file of n bytes with the same comes beside this head (SCM_RIGHTS; Unix sockets alone)
        r   n bytes of text: refused, and will be again
        d   n bytes of text: who asks is not known
        a   n bytes of text: not now

A connection takes one request after another. Whatever is not this is the end of it. The server is producer/parcels.py.
"""

import contextlib
import fcntl
import json
import mmap
import os
import socket
import struct
import time
from pathlib import Path

import pyarrow as pa

from producer.api.unit import UnitId

REQUEST_LIMIT = 4096  # bytes; a token has some tens, a unit's name too
REASON_LIMIT = 4096
BYTES, MAPPED, REFUSED, DENIED, AWAY = b"b", b"m", b"r", b"d", b"a"
ASK, HEAD = struct.Struct("<I"), struct.Struct("<cQ")

# What a file has that is handed over: nobody can make it smaller, or write to it who does not already.
_F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE

# glibc's, which malloc.py tunes: Arrow's own gives large blocks back, and their pages fault anew each time.
POOL = pa.system_memory_pool()

_UNIT_LIMIT = 2 << 30
_CONNECT_S = 2.0
_TIME = struct.Struct("@ll")  # timeval


class CutError(ConnectionError):
    """The connection ended, was too slow, or carried what is not of this protocol."""


class StaleError(CutError):
    """It ended before it answered: it may have been idle for too long."""


def unpacked(content: pa.Buffer) -> pa.RecordBatch:
    """The record batch in `content`, which keeps it alive. Raises Arrow's errors, or OSError, where it is damaged."""
    with pa.ipc.open_stream(content) as reader:
        return reader.read_next_batch()


class Line:
    """A connection to the server at `where`: (host, port), or the path of a Unix socket. CutError ends it."""

    def __init__(self, where: "tuple[str, int] | Path") -> None:
        try:
            self._socket = _near(where) if isinstance(where, Path) else socket.create_connection(where, _CONNECT_S)
        except OSError as error:
            raise CutError(f"nobody answers: {error.strerror or error}") from None
        if self._socket.family != socket.AF_UNIX:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._cancelled = False

    def ask(self, token: str, unit: UnitId, timeout_s: float) -> tuple[bytes, pa.Buffer | str]:
        """The kind of the answer, and the unit's bytes or the reason why there are none."""
        end = time.monotonic() + timeout_s
        try:
            said = json.dumps({"token": token, "unit": unit}).encode()
            patient(self._socket, timeout_s)
            self._socket.sendall(ASK.pack(len(said)) + said)
            head, files = self._head(end)
            kind, size = HEAD.unpack(head)
            return kind, self._answer(kind, size, files, end)
        except (TimeoutError, BlockingIOError):
            raise CutError(f"not sent within {timeout_s:g} s") from None
        except ConnectionError as error:
            if self._cancelled:
                raise CutError("it took too long") from None
            raise error if isinstance(error, CutError) else StaleError(error.strerror or str(error)) from None
        except OSError as error:
            raise CutError(error.strerror or str(error)) from None

    def cancel(self) -> None:
        """Let whoever waits for it wait no longer; any thread may."""
        self._cancelled = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def _head(self, end: float) -> tuple[bytes, list[int]]:
        head, files = b"", list[int]()
        while len(head) < HEAD.size:
            patient(self._socket, end - time.monotonic())
            if self._socket.family == socket.AF_UNIX:
                part, more, _, _ = socket.recv_fds(self._socket, HEAD.size - len(head), 1)
                files += more
            else:
                part = self._socket.recv(HEAD.size - len(head))
            if not part:
                _close(files)
                raise StaleError("closed before it answered")
            head += part
        return head, files

    def _answer(self, kind: bytes, size: int, files: list[int], end: float) -> pa.Buffer | str:
        if kind == MAPPED:
            return _mapped(files, size)
        _close(files)
        if size > (_UNIT_LIMIT if kind == BYTES else REASON_LIMIT) or kind not in (BYTES, REFUSED, DENIED, AWAY):
            raise CutError(f"what came is no unit: {kind!r} of {size} bytes")
        content = pa.allocate_buffer(size, memory_pool=POOL)
        view, got = memoryview(content).cast("B"), 0
        while got < size:
            patient(self._socket, end - time.monotonic())
            count = self._socket.recv_into(view[got:], 0, socket.MSG_WAITALL)
            if not count:
                raise CutError(f"closed after {got} of {size} bytes")
            got += count
        return content if kind == BYTES else view.tobytes().decode(errors="replace")


def _near(path: Path) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(_CONNECT_S)
    try:
        line.connect(str(path))
    except OSError:
        line.close()
        raise
    return line


def patient(line: socket.socket, seconds: float) -> None:
    """Let each call on `line` take that long. The kernel waits: Python's own timeouts ask it before every piece."""
    if seconds <= 0:
        raise TimeoutError
    line.settimeout(None)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        line.setsockopt(socket.SOL_SOCKET, option, _TIME.pack(int(seconds), int(seconds % 1 * 1e6) + 1))


def _mapped(files: list[int], size: int) -> pa.Buffer:
    """The file's memory, read only. One that could still shrink is not taken: reading it would end this process."""
    try:
        if len(files) != 1 or not 0 < size <= _UNIT_LIMIT or os.fstat(files[0]).st_size < size:
            raise CutError(f"{len(files)} files came for {size} bytes")
        seals = fcntl.fcntl(files[0], fcntl.F_GET_SEALS)
        if seals & SEALS != SEALS:
            raise CutError(f"the file that came can still be changed (seals {seals})")
        return pa.py_buffer(mmap.mmap(files[0], size, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ))
    finally:
        _close(files)


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)
