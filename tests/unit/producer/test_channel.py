"""A channel that is closed cuts calls off with a reason, whoever is in the middle of one."""

import subprocess
import sys
from pathlib import Path

import pytest

from producer.api.channel import Channel, UnreachableError
from producer.api.unit import UnitId
from tests.unit.producer import closing

ROOT = Path(__file__).parents[3]


def test_a_channel_closed_under_those_who_use_it_ends_no_process() -> None:
    line = [sys.executable, closing.__file__, "1500"]
    done = subprocess.run(line, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout[-1000:]}{done.stderr[-3000:]}"


def test_a_closed_channel_says_so() -> None:
    channel = Channel("127.0.0.1:1", "word")
    channel.close()
    channel.close()
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1: this connection was closed"):
        channel.ask_raw("status", b"", 1.0)
    with pytest.raises(UnreachableError, match="this connection was closed"):
        channel.open(UnitId("train", 0, 0), 1.0)
