"""A link between machines: a relay on 127.0.0.2 in front of a server on 127.0.0.1, which can be slow, cut or reset."""

import contextlib
import socket
import struct
import threading
import time

_POLL_S = 0.1
_CHUNK = 1 << 16
_SLOW_CHUNK, _SLOW_S = 4096, 0.05  # 80 kB/s, and that long at least each way


class Link:
    """Relays connections from `port` (0: a free one) of 127.0.0.2 to the same port of 127.0.0.1, until `close`."""

    HOST = "127.0.0.2"

    def __init__(self, port: int = 0) -> None:
        self._server = socket.create_server((self.HOST, port))
        self._server.settimeout(_POLL_S)
        self.port = int(self._server.getsockname()[1])
        self.mood = "well"  # or "slow", "cut": bytes and connections stay where they are
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name=f"link-{self.port}", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"{self.HOST}:{self.port}"

    def reset(self) -> None:
        """Break every connection in the middle of what it carries."""
        with self._lock:
            broken, self._open = self._open, set()
        for end in broken:
            _drop(end, reset=True)

    def close(self) -> None:
        self._closed = True
        self._server.close()
        self._thread.join(2.0)
        with self._lock:
            left, self._open = self._open, set()
        for end in left:
            _drop(end)

    def _accept(self) -> None:
        while not self._closed:
            if self.mood == "cut":
                time.sleep(_POLL_S)
                continue
            try:
                near, _ = self._server.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.port), 2.0)
            except OSError:
                _drop(near, reset=True)
                continue
            for end in (near, far):
                # A relay that gathered small packets would be slow always.
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                end.settimeout(_POLL_S)
            with self._lock:
                self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while not self._closed:
                if self.mood == "cut":
                    time.sleep(_POLL_S)
                    continue
                slow = self.mood == "slow"
                try:
                    raw = source.recv(_SLOW_CHUNK if slow else _CHUNK)
                except TimeoutError:
                    continue
                if not raw:
                    break
                if slow:
                    time.sleep(_SLOW_S)
                self._send(sink, raw)
        except OSError:
            pass
        with self._lock:
            self._open -= {source, sink}
        _drop(source)
        _drop(sink)

    def _send(self, sink: socket.socket, raw: bytes) -> None:
        left = memoryview(raw)
        while left and not self._closed:
            with contextlib.suppress(TimeoutError):
                left = left[sink.send(left) :]


def _drop(end: socket.socket, *, reset: bool = False) -> None:
    with contextlib.suppress(OSError):
        if reset:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            end.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        end.close()
