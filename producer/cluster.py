"""Ray for as long as some work takes: a private cluster on this machine, or one that is running already."""

import contextlib
import ctypes
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_constants

from producer.lock import LockError, exclusive

# A Unix socket's path holds 107 characters (unix(7)); Ray puts 63 after its temporary folder.
_MAX_TEMP = 107 - 63
_CONNECT_S = 10.0
_END_S = 5.0
# CVE-2025-62593 (jobs), CVE-2026-27482 (dashboard), CVE-2026-41486 and CVE-2026-57516 (Ray Data) are mended in it.
_LEAST = (2, 56)
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_PREFIX, _OWNER = "ink-", ".owner"
# Ray keeps a record of every block; beyond this several rows share one.
_MAX_BLOCKS = 4096
# Ray's own environment variables.
_AUTH, _WAIT = "RAY_AUTH_MODE", "RAY_gcs_server_port_wait_time_s"


class ClusterError(ValueError):
    """The cluster at an address does not answer, or Ray is too old to be let near a network."""


@contextmanager
def cluster(address: str, *, object_store_bytes: int, setting: str) -> Iterator[None]:
    """Ray at `address` ("local" starts a private one on the loopback, "auto" or host:port joins one).

    A private cluster ends with the block, whatever ends it. `setting` names the address in errors.
    """
    check_version(ray.__version__)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address != "local":
        _answer(address, setting)
        try:
            with _tried_once():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            token = "" if os.environ.get(_AUTH) else f"; a cluster that asks for a token needs {_AUTH}=token"
            raise ClusterError(f"{setting}: no Ray cluster at {address}: {error}{token}") from None
        try:
            yield
        finally:
            ray.shutdown()
        return
    with _temporary_folder() as temp:
        try:
            with _loopback_alone():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    object_store_memory=object_store_bytes,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(temp),
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            yield
        finally:
            ray.shutdown()


def dataset(rows: list[dict[str, Any]]) -> Any:
    """`rows` for Ray Data, a task each, on the Ray that was joined; what Ray Data would print of them it does not."""
    # Here, since most who need Ray do not need this.
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray.data.from_items(rows, override_num_blocks=min(len(rows), _MAX_BLOCKS))


def check_version(version: str) -> None:
    """ClusterError for a Ray with holes that are known and mended: in its jobs API, dashboard and Ray Data."""
    if tuple(int(part) for part in version.split(".")[:2]) < _LEAST:
        raise ClusterError(f"ray {version} is installed; versions before 2.56 let others run code: pip install -U ray")


@contextmanager
def _loopback_alone() -> Iterator[None]:
    """Have a starting Ray bind its ports to the loopback; on Linux it opens some twenty to every interface.

    What keeps them closed elsewhere is a switch for other systems, which Ray reads when it is imported and hands to
    its processes by the environment.
    """
    name, before = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", ray_constants.ENABLE_RAY_CLUSTER
    said = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(name)
        if said is not None:
            os.environ[name] = said


@contextmanager
def _tried_once() -> Iterator[None]:
    """Joining, Ray tries twenty times, up to 30 s each, for a head that may still start; ours must answer at once."""
    before = os.environ.get(_WAIT)
    os.environ[_WAIT] = "1"
    try:
        yield
    finally:
        # A head started later from this process would wait for its own port no longer than this.
        if before is None:
            del os.environ[_WAIT]
        else:
            os.environ[_WAIT] = before


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder with a short path; it and our processes in it go with the block, and folders that dead owners left."""
    for owner in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*{_OWNER}"):
        # Locked by somebody alive, or somebody else's.
        with contextlib.suppress(LockError, OSError), exclusive(owner, timeout_s=0):
            _remove(owner.with_suffix(""))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    if len(str(folder)) > _MAX_TEMP:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))
    with exclusive(folder.with_suffix(_OWNER), timeout_s=0):
        _adopt_orphans(True)
        try:
            with _watched(folder):
                yield folder
        finally:
            _end_processes(folder)
            _adopt_orphans(False)
            _remove(folder)


@contextmanager
def _watched(folder: Path) -> Iterator[None]:
    """Have a child end what works in `folder` if this process is killed in the block."""
    watch = [sys.executable, "-m", "producer.cluster_watch", str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # Neither our terminal's signals nor those to our group are for it.
    child = subprocess.Popen(
        watch, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
    )
    try:
        yield
    finally:
        # By now there is nothing that it could do which _end_processes does not.
        child.kill()
        child.communicate()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(_OWNER).unlink(missing_ok=True)


def _adopt_orphans(on: bool) -> None:
    """Whether a process whose parent dies comes to this one instead of to init: how we know Ray's from others."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)


def _end_processes(folder: Path) -> None:
    """Kill those of our descendants that still write their log to `folder`.

    Interrupted while it starts, Ray leaves agents behind for a minute.
    """
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline:
        left = [process for process in psutil.Process().children(recursive=True) if _writes_to(process, f"{folder}/")]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if not left:
            return
        psutil.wait_procs(left, 1.0)


def _writes_to(process: psutil.Process, folder: str) -> bool:
    try:
        return any(file.path.startswith(folder) for file in process.open_files())
    except psutil.Error:
        return False


def _answer(address: str, setting: str) -> None:
    """Ray itself waits minutes for an address where nobody listens."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        with contextlib.closing(socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S)):
            pass
    except OSError as error:
        raise ClusterError(f"{setting}: nobody answers at {address} ({error}); is the cluster up?") from None
