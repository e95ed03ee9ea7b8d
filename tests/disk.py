"""A small disk of a test process's own, to fill."""

import contextlib
import ctypes
import os
from pathlib import Path

# From linux/sched.h and linux/mount.h.
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_PRIVATE = 16384, 1 << 18
MS_RDONLY, MS_REMOUNT = 1, 32


def mounted(size: int, at: Path, *flags: int) -> None:
    """A file system of `size` bytes of this process alone; OSError where the kernel does not let it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(code: int) -> None:
        if code:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    options = f"size={size}".encode()
    if not flags:
        user, group = os.getuid(), os.getgid()
        call(libc.unshare(_CLONE_NEWNS | _CLONE_NEWUSER))
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        call(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    call(libc.mount(b"tmpfs", str(at).encode(), b"tmpfs", sum(flags), options))


def filled(file: Path) -> None:
    """Write to `file` until its disk takes no more."""
    with file.open("wb", buffering=0) as opened, contextlib.suppress(OSError):
        while opened.write(bytes(1 << 12)):
            pass
