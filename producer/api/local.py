"""Other ways to a server than its Flight port: a plain port, and for who is on its machine a Unix socket.

An address is `host:port`, or `host:port raw:PORT unix:PATH` with either or both. The socket lies in a folder of its
user's alone, and is taken where it is ours and somebody answers there. `sweep` removes those of killed processes.
"""

import contextlib
import os
import secrets
import socket
import stat
import tempfile
from pathlib import Path

_RAW, _UNIX = "raw:", "unix:"
_CONNECT_S = 1.0
_MAX_PATH = 107  # unix(7)


def new_socket() -> Path | None:
    """Where a server may listen; None where there is no safe place for it."""
    path = _folder() / f"{secrets.token_hex(8)}.sock"
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
    return path if _is_ours(path.parent) and len(str(path)) <= _MAX_PATH else None


def together(address: str, raw: int | None = None, path: Path | None = None) -> str:
    """The address of who listens at `address` (host:port) and, unless None, at port `raw` and at `path`."""
    return " ".join([address, *([f"{_RAW}{raw}"] if raw else []), *([f"{_UNIX}{path}"] if path else [])])


def far(address: str) -> str:
    """The part of an address that holds on every machine, host:port."""
    return address.partition(" ")[0]


def raw(address: str) -> tuple[str, int] | None:
    """The host and the plain port in an address."""
    said = _said(address, _RAW)
    return (far(address).rpartition(":")[0].strip("[]"), int(said)) if said.isdecimal() and int(said) < 65536 else None


def near(address: str) -> Path | None:
    """The Unix socket in an address, if its server is on this machine, ours and alive."""
    said = _said(address, _UNIX)
    path = Path(said)
    if not said or path.parent != _folder():
        return None
    return path if _is_ours(path.parent) and _answers(path) else None


def sweep() -> None:
    """Remove the sockets of processes that are gone."""
    if _is_ours(_folder()):
        for path in _folder().glob("*.sock"):
            if not _answers(path):
                path.unlink(missing_ok=True)
        # Others of ours may have theirs in it.
        with contextlib.suppress(OSError):
            _folder().rmdir()


def _said(address: str, prefix: str) -> str:
    parts = address.split(" ")[1:]
    return next((part.removeprefix(prefix) for part in parts if part.startswith(prefix)), "")


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"inkstone-{os.getuid()}"


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can put or replace anything in `folder`."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_CONNECT_S)
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True
