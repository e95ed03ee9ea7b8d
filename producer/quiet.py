"""Silence for decoders: Pillow warns of odd metadata, which is no fault of the pixels.

`warnings.catch_warnings` is of the whole process, and threads that enter and leave it crosswise put back each other's
filters: a warning then depends on timing, and where warnings are errors a picture does.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_caught = warnings.catch_warnings()


@contextmanager
def quiet() -> Iterator[None]:
    """No warning is shown or raised inside; any number of threads may be."""
    global _inside, _caught
    with _lock:
        if _inside == 0:
            _caught = warnings.catch_warnings()
            _caught.__enter__()
            warnings.simplefilter("ignore")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _caught.__exit__(None, None, None)
