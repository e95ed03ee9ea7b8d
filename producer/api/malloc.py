"""glibc's allocator tuned for large messages.

Every 64 MiB Flight message is otherwise a fresh mmap whose pages fault one by one: half the throughput and three times
the CPU. Call before gRPC starts a thread, in every process that serves or pulls units.
"""

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def tune() -> bool:
    """Keep freed memory in the heap instead of returning it to the kernel; False where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20))
    return all([bool(libc.mallopt(option, value)) for option, value in settings])
