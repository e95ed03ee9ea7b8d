"""A job in which a rank hangs says so to whoever asks for its health, before the watchdog ends it."""

import contextlib
import http.client
import socket
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Start
from tests.faults.planted import Fault

RUN_S, STALE_S, LATEST_S = 60.0, 3, 10.0


def health(port: int) -> int | None:
    """The status of /healthz; None while nobody answers."""
    with contextlib.suppress(OSError):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
        connection.close()
        return status
    return None


@pytest.mark.long
def test_health_turns_bad_within_ten_seconds_of_a_hang(start: Start, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endless = ("mesh.tp=1", "train.steps=100000", "schedule.total_steps=100000", "checkpoint.every=100000")
    watched = (f"prometheus.address=127.0.0.1:{port}", f"prometheus.stale_s={STALE_S}", "watchdog.hang_s=45")
    job = start(tmp_path, 2, *endless, *watched, faults=[Fault("SIGSTOP", "forward", 8, rank=1)])
    job.until(lambda: health(port) == 200 or None, RUN_S)
    job.until(lambda: job.struck() or None, RUN_S)
    struck = time.monotonic()
    job.until(lambda: health(port) == 503 or None, RUN_S)
    assert time.monotonic() - struck <= LATEST_S and job.poll() is None
