"""What benches share: their numbers in runs/bench/FILE, one JSON object of cases, and the memory that a run needs."""

import ctypes
import fcntl
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

# From glibc's malloc.h.
_M_MMAP_THRESHOLD = -3

FOLDER = Path(__file__).parents[2] / "runs" / "bench"


def record(file: str, cases: Mapping[str, Mapping[str, object]]) -> None:
    """Merge `cases` {case: {ours, peer, ratio, target, unit}} into `file`; ratio is how many times better than peer."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / file
    with path.with_name(f".{file}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = json.loads(path.read_text()) if path.exists() else {}
        aside = path.with_name(f".{file}.{os.getpid()}")
        aside.write_text(json.dumps(known | dict(cases), indent=2, sort_keys=True))
        os.replace(aside, path)


def peak_growth(run: Callable[[], object]) -> int:
    """Bytes by which this process's resident memory grows at most while `run` runs; Linux with glibc alone."""
    libc = ctypes.CDLL(None)
    # Every large block fresh from the kernel: what malloc kept of earlier runs would be used again without growing.
    libc.mallopt(_M_MMAP_THRESHOLD, 2**16)
    try:
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, proc(5)
        before = _status("VmRSS")
        run()
        return max(0, _status("VmHWM") - before)
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)  # where glibc's own tuning ends


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, f"/proc/self/status has no {field}"
    return int(found[1]) * 1024
