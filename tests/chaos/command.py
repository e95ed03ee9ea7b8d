"""Chaos runs as tests start them: a process of its own, of which nothing may be left."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
LEAVE_S = 10.0


def strike(folder: Path, *options: str, timeout_s: float) -> dict[str, Any]:
    """What a run with `options` of tests.chaos.run says of itself. AssertionError if something did not hold."""
    # Of a short name: sockets lie in it, whose paths hold 107 characters.
    temporary = Path(tempfile.mkdtemp(prefix="chaos-"))
    command = [sys.executable, "-m", "tests.chaos.run", str(folder / "run"), *options]
    environment = os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, _ = running.communicate(timeout=timeout_s)
    finally:
        left = _left(running.pid)
        for process in left:
            process.kill()
        running.wait()
    assert running.returncode == 0, f"again with: {' '.join(command[1:])}\n{out[-20_000:]}"
    assert not left, f"outlived the run: {left}"
    strange = list(temporary.rglob("*"))
    assert not strange, f"left behind: {strange}"
    temporary.rmdir()
    return dict(json.loads(out))


def _left(session: int) -> list[psutil.Process]:
    """Processes of `session`, after those that are ending had the time to."""
    end = time.monotonic() + LEAVE_S
    while True:
        found = [process for process in psutil.process_iter() if _is_of(process, session)]
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.05)


def _is_of(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):
        return False
