import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch._C._distributed_c10d import HashStore

from consumer.endings import Cause, read_status
from consumer.stop import SIGNALS, Stop
from parallel import board

ROOT = Path(__file__).parents[3]

# A loop of steps of 20 ms that ends as consumer/loop.py does.
LOOP = """
import sys, time
from pathlib import Path
from consumer.stop import Stop
stop = Stop(float(sys.argv[2]), Path(sys.argv[1]), "a-run")
print("ready", flush=True)
while True:
    time.sleep(0.02)
    stop.step += 1
    if code := stop.heard(stop.said()):
        sys.exit(code)
"""

# As in a collective whose peer is gone: the main thread waits in C and runs no Python.
BLOCKED = """
import os, sys, threading
from pathlib import Path
from consumer.stop import Stop
stop = Stop(float(sys.argv[2]), Path(sys.argv[1]))
stop.step = 41
lock = threading.Lock()
lock.acquire()
print("ready", flush=True)
import ctypes
mutex = ctypes.create_string_buffer(64)
lib = ctypes.CDLL(None)  # lets go of the GIL
lib.pthread_mutex_lock(mutex)
lib.pthread_mutex_lock(mutex)
"""

# A rank that no signal reached hears the code of one that it did reach, and then hangs in its save.
HEARD = """
import sys, time
from pathlib import Path
from consumer.stop import Stop
stop = Stop(float(sys.argv[2]), Path(sys.argv[1]))
print("ready", flush=True)
assert stop.heard(0) == 0 and stop.heard(143) == 143 and stop.code == 143
time.sleep(60)
"""


def start(code: str, folder: Path, grace_s: float) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    line = [sys.executable, "-c", code, str(folder), str(grace_s)]
    child = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    return child


def finish(child: "subprocess.Popen[str]") -> int:
    try:
        child.communicate(timeout=20)
    finally:
        child.kill()
        child.wait()
    return child.returncode


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 138), (signal.SIGTERM, 143)], ids=lambda n: str(int(n))
)
def test_a_signal_ends_the_loop_at_a_steps_end_with_its_own_code(tmp_path: Path, number: int, code: int) -> None:
    child = start(LOOP, tmp_path, 10)
    child.send_signal(number)
    assert finish(child) == code
    assert read_status(tmp_path) is None  # a proper end is the launcher's to write down


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_changes_nothing(tmp_path: Path, second: int) -> None:
    child = start(LOOP.replace("0.02", "0.5"), tmp_path, 10)
    child.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    for _ in range(5):
        child.send_signal(second)
    assert finish(child) == 143


@pytest.mark.parametrize(("number", "cause"), [(signal.SIGTERM, Cause.PREEMPTED), (signal.SIGUSR1, Cause.SAVED)])
def test_a_step_that_never_ends_is_ended_after_the_grace_period_and_says_so(
    tmp_path: Path, number: int, cause: Cause
) -> None:
    child = start(BLOCKED, tmp_path, 0.5)
    asked = time.monotonic()
    child.send_signal(number)
    assert finish(child) == 128 + number
    assert 0.4 < time.monotonic() - asked < 5
    status = read_status(tmp_path)
    assert status is not None and (status.cause, status.step) == (cause, 41)
    assert "without a save" in status.message


def test_the_grace_period_also_runs_where_no_signal_came(tmp_path: Path) -> None:
    assert finish(start(HEARD, tmp_path, 0.3)) == 143
    status = read_status(tmp_path)
    assert status is not None and status.cause is Cause.PREEMPTED


@pytest.fixture
def stop() -> Iterator[Stop]:
    installed = Stop(60)
    yield installed
    installed.close()


def test_the_greatest_code_wins_on_every_rank(stop: Stop) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.said() == 130
    assert stop.heard(max(stop.said(), 143)) == 143
    assert stop.code == 143


def test_who_waits_is_told_at_once_and_who_comes_late_too(stop: Stop) -> None:
    told = threading.Event()
    stop.then(told.set)
    assert not told.is_set()
    os.kill(os.getpid(), signal.SIGTERM)
    assert told.wait(5)
    late = threading.Event()
    stop.then(late.set)
    assert late.is_set()


def test_closing_gives_the_signals_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    stop = Stop(0.05)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.code == 143
    stop.close()
    time.sleep(0.1)  # still here: nothing is forced any more
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_to_another_rank_is_heard_without_a_step(stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    store, told = HashStore(), threading.Event()
    monkeypatch.setattr(board, "_get_default_store", lambda: store)
    stop.then(told.set)
    stop.relay(board.Call("stop"))
    assert not told.wait(0.7) and stop.code == 0
    board.Call("stop").out(143)
    assert told.wait(10) and stop.code == 143


def test_a_signal_is_called_out_to_the_other_ranks(stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    store = HashStore()
    monkeypatch.setattr(board, "_get_default_store", lambda: store)
    stop.relay(board.Call("stop"))
    os.kill(os.getpid(), signal.SIGUSR1)
    other, end = board.Call("stop"), time.monotonic() + 10
    while not other.heard():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert other.heard() == 138


# Threads that are nearly always inside torch's store.
RELAYS = """
import sys
import torch.distributed as dist
import consumer.stop
from parallel.board import Call
consumer.stop._RELAY_S = 1e-4
dist.init_process_group("gloo", store=dist.TCPStore("127.0.0.1", 0, 1, True), rank=0, world_size=1)
stop = consumer.stop.Stop(5.0)
for number in range(12):
    stop.relay(Call(str(number)))
"""


def test_listening_to_other_ranks_does_not_abort_a_process_that_ends() -> None:
    done = subprocess.run([sys.executable, "-c", RELAYS], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
