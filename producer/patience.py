"""Rows of Ray Data with a deadline, since it has none of its own."""

import ctypes
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Seconds for a thread that has its last row to end by itself, and for one that is called off: Ray Data looks up every
# 10 ms, and then gives its scheduler 2 s.
_LAST_S, _END_S = 0.1, 10.0

Row = dict[str, Any]


class StallError(ValueError):
    """Nothing was finished for too long."""


def rows_of(data: Any) -> Iterator[Row]:
    """The rows of a Ray dataset as its tasks end. Nothing is fetched ahead: Ray Data would do it in other threads."""
    for batch in data.iter_batches(prefetch_batches=0, batch_size=None, batch_format="pyarrow"):
        yield from batch.to_pylist()


def within(
    rows: Iterable[Row], stall_s: float, setting: str, sign: Callable[[], object] = lambda: None
) -> Iterator[Row]:
    """`rows` as they come.

    StallError, which names the `setting` of `stall_s`, when there is none for so many seconds and `sign` says the same
    as before. However it ends, nobody waits for `rows` any more: the Ray that makes them may be shut down.
    """
    before = sign()
    came: queue.SimpleQueue[Row | BaseException | None] = queue.SimpleQueue()

    def pump() -> None:
        try:
            for row in rows:
                came.put(row)
            came.put(None)
        except BaseException as error:
            came.put(error)

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    try:
        while True:
            try:
                row = came.get(timeout=stall_s)
            except queue.Empty:
                now = sign()
                if now == before:
                    raise StallError(
                        f"{setting}: no shard was finished for {stall_s:g} s; what is done is kept, run it again to go "
                        "on"
                    ) from None
                before = now
                continue
            if row is None:
                return
            if isinstance(row, BaseException):
                raise row
            yield row
    finally:
        _call_off(thread)


def _call_off(thread: threading.Thread) -> None:
    """End `thread`, which waits in Python. Left waiting, it would start another Ray once this one is gone."""
    thread.join(_LAST_S)
    if thread.is_alive():
        assert thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        thread.join(_END_S)
