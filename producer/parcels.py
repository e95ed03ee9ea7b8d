"""Units as they are sent by plain sockets, and the server that sends them (producer/api/parcel.py says how)."""

import contextlib
import fcntl
import json
import logging
import mmap
import os
import resource
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from producer.api.parcel import (
    ASK,
    BYTES,
    DENIED,
    HEAD,
    MAPPED,
    POOL,
    REASON_LIMIT,
    REQUEST_LIMIT,
    SEALS,
    CutError,
    patient,
    unpacked,
)
from producer.api.unit import UnitId

log = logging.getLogger(__name__)

# A small unit is copied sooner than mapped, and every file is a descriptor.
_MAP_FROM = 1 << 18
_KEPT_FILES = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


class SealedFile:
    """A file in memory, without a name, that nobody else can change; closed with the last who knows it."""

    count = 0  # of this process

    def __init__(self, size: int) -> None:
        """OSError where the kernel has none for us."""
        self.descriptor = os.memfd_create("unit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        SealedFile.count += 1
        os.posix_fallocate(self.descriptor, 0, size)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            SealedFile.count -= 1
            os.close(self.descriptor)


@dataclass(frozen=True, eq=False)
class Packed:
    """One unit as it is sent. `batch` lies in `content`; `file` has the same, where there is one."""

    batch: pa.RecordBatch
    content: pa.Buffer
    file: SealedFile | None = None


def packed(batch: pa.RecordBatch, *, mapped: bool) -> Packed:
    """`batch` written once, so that every transfer of it is a plain copy; or none, by readers who map it (`mapped`)."""
    counted = pa.MockOutputStream()
    _write(counted, batch)
    size = counted.size()
    if mapped and size >= _MAP_FROM and SealedFile.count < _KEPT_FILES:
        try:
            file = SealedFile(size)
            content = pa.py_buffer(mmap.mmap(file.descriptor, size))
            _write(pa.FixedSizeBufferWriter(content), batch)
            fcntl.fcntl(file.descriptor, fcntl.F_ADD_SEALS, SEALS)
        except OSError as error:
            log.info("no file in memory for a unit: %s", error)
        else:
            return Packed(unpacked(content), content, file)
    content = pa.allocate_buffer(size, memory_pool=POOL)
    _write(pa.FixedSizeBufferWriter(content), batch)
    return Packed(unpacked(content), content)


def _write(sink: object, batch: pa.RecordBatch) -> None:
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)


class ParcelServer:
    """Answers at `listener` from construction to `shut`, a thread for each connection.

    `answer` is given a request's token, its unit and who asks, and says the kind and the unit or the reason.
    """

    IDLE_S = 10.0  # until a connection that asks for nothing is closed
    ASK_S = 5.0  # for a request to come whole once it has begun, and for the first
    STALL_S = 30.0  # for the other side to take anything

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[str, UnitId, str], tuple[bytes, Packed | str]],
        at_once: int,
    ) -> None:
        self._listener, self._answer, self._at_once = listener, answer, at_once
        self._lock = threading.Lock()
        self._lines: set[socket.socket] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="parcels", daemon=True)
        self._thread.start()

    def shut(self) -> None:
        """End the listening and all connections."""
        with self._lock:
            self._closed = True
            lines = list(self._lines)
        for line in (self._listener, *lines):
            # A thread that waits in it wakes, which it does not where it is only closed.
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        self._thread.join(1.0)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                line, peer = self._listener.accept()
            except OSError:
                if not self._closed:
                    time.sleep(0.1)  # of descriptors there are none left, for a while
                continue
            with self._lock:
                room = len(self._lines) < self._at_once and not self._closed
                if room:
                    self._lines.add(line)
            if not room:
                line.close()
                continue
            who = f"ipv4:{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix:"
            threading.Thread(target=self._serve, args=(line, who), name="parcel", daemon=True).start()

    def _serve(self, line: socket.socket, who: str) -> None:
        try:
            if line.family != socket.AF_UNIX:
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wait_s = self.ASK_S
            while not self._closed and (asked := self._asked(line, wait_s)) is not None:
                kind, said = self._answer(*asked, who)
                _send(line, kind, said, self.STALL_S)
                if kind == DENIED:
                    return
                wait_s = self.IDLE_S
        except OSError:
            pass  # the other side is gone, or too slow
        finally:
            with self._lock:
                self._lines.discard(line)
            line.close()

    def _asked(self, line: socket.socket, wait_s: float) -> tuple[str, UnitId] | None:
        """The next request's token and unit; None where the connection is over or speaks something else."""
        patient(line, wait_s)
        raw = line.recv(ASK.size)
        end = time.monotonic() + self.ASK_S
        raw += _exactly(line, ASK.size - len(raw), end) if raw else b""
        size = ASK.unpack(raw)[0] if len(raw) == ASK.size else 0
        if not 0 < size <= REQUEST_LIMIT:
            return None
        try:
            said = json.loads(_exactly(line, size, end))
            stream, step, number = said["unit"]
            return str(said["token"]), UnitId(str(stream), int(step), int(number))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None


def _exactly(line: socket.socket, size: int, end: float) -> bytes:
    raw = b""
    while len(raw) < size:
        patient(line, end - time.monotonic())
        part = line.recv(size - len(raw))
        if not part:
            raise CutError("closed in the middle of a request")
        raw += part
    return raw


def _send(line: socket.socket, kind: bytes, said: Packed | str, stall_s: float) -> None:
    patient(line, stall_s)
    if isinstance(said, str):
        raw = said.encode()[:REASON_LIMIT]
        line.sendall(HEAD.pack(kind, len(raw)) + raw)
        return
    size = said.content.size
    if said.file is not None and line.family == socket.AF_UNIX:
        socket.send_fds(line, [HEAD.pack(MAPPED, size)], [said.file.descriptor])
        return
    line.sendall(HEAD.pack(BYTES, size), socket.MSG_MORE)
    left = memoryview(said.content).cast("B")
    while left:
        # sendfile was tried: the file's single pages cost both sides twice as much.
        left = left[line.send(left) :]
