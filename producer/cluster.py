"""Ray for as long as some work takes: a private cluster on this machine, or one that is running already."""

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import ray
from ray._private import ray_constants

# A Unix socket's path holds 107 characters (unix(7)); Ray puts 63 after its temporary folder.
_MAX_TEMP = 107 - 63
_CONNECT_S = 10.0
_END_S = 5.0


class ClusterError(ValueError):
    """The cluster at an address does not answer."""


@contextmanager
def cluster(address: str, *, object_store_bytes: int, setting: str) -> Iterator[None]:
    """Ray at `address` ("local" starts a private one on the loopback, "auto" or host:port joins one).

    A private cluster ends with the block, whatever ends it. `setting` names the address in errors.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address != "local":
        _answer(address, setting)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(f"{setting}: no Ray cluster at {address}: {error}") from None
        try:
            yield
        finally:
            ray.shutdown()
        return
    temp = _short_folder()
    try:
        with _loopback_alone():
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=object_store_bytes,
                _node_ip_address="127.0.0.1",
                _temp_dir=temp,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        yield
    finally:
        try:
            ray.shutdown()
        finally:
            # Also where an interrupt ends the shutdown itself.
            _end_processes(temp)
            shutil.rmtree(temp, ignore_errors=True)


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


def _end_processes(temp: str) -> None:
    """Kill what still writes its log to `temp`: interrupted while it starts, Ray leaves agents behind for a minute."""
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline:
        left = [process for process in psutil.process_iter() if _writes_to(process, temp)]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if not left:
            return
        psutil.wait_procs(left, 1.0)


def _writes_to(process: psutil.Process, folder: str) -> bool:
    try:
        return process.pid != os.getpid() and any(file.path.startswith(folder) for file in process.open_files())
    except psutil.Error:
        return False


def _short_folder() -> str:
    folder = tempfile.mkdtemp(prefix="ink-")
    if len(folder) > _MAX_TEMP:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="ink-", dir="/tmp")
    return folder


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
