"""A far file to scan: whole blocks are fetched, and the last ones kept, so that thousands of short reads cost few."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable

from producer.source.shard import UnreadableError

_BLOCK = 4 << 20  # a request's round trip is paid back from about a megabyte
_KEPT = 8  # blocks; what images of a batch may lie in


class RangedFile(io.RawIOBase):
    """`size` bytes behind `fetch(offset, size)`, which threads may read at once by `pread`."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, close: Callable[[], None]) -> None:
        super().__init__()
        self._fetch, self._size, self._on_close = fetch, size, close
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def pread(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, fewer where the file ends."""
        size = max(0, min(size, self._size - offset))
        first = offset // _BLOCK
        parts = [self._block(number) for number in range(first, -(-(offset + size) // _BLOCK))]
        start = offset - first * _BLOCK
        return b"".join(parts)[start : start + size]

    def _block(self, number: int) -> bytes:
        with self._lock:
            if number not in self._blocks:
                expected = min(_BLOCK, self._size - number * _BLOCK)
                raw = self._fetch(number * _BLOCK, expected)
                if len(raw) != expected:
                    raise UnreadableError(f"ends at {number * _BLOCK + len(raw)} of {self._size} bytes; it has changed")
                self._blocks[number] = raw
                while len(self._blocks) > _KEPT:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(number)
            return self._blocks[number]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        wanted = self._size - self._position if size is None or size < 0 else size
        raw = self.pread(self._position, wanted)
        self._position += len(raw)
        return raw

    def readinto(self, into: bytearray) -> int:  # type: ignore[override]
        raw = self.read(len(into))
        into[: len(raw)] = raw
        return len(raw)

    def close(self) -> None:
        if not self.closed:
            self._on_close()
            self._blocks.clear()
        super().close()
