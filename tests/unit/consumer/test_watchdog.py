"""The hang watchdog, on real processes that really hang. Ranks here are small programs of their own."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from consumer import watchdog
from consumer.endings import STATUS, Cause, Start, Status, read_status
from consumer.watch_process import POLL_S, Beat, Orders, Rank, Watch, process
from consumer.watchdog import Watchdog, WatchdogConfig, WatchdogError

ROOT = Path(__file__).parents[3]
HANG_S = 1.0

# Steps of a few milliseconds; the rank named in argv[2] then does `FAULT`.
RANK = """
import ctypes, os, signal, sys, threading, time
from pathlib import Path
from consumer.watchdog import Watchdog, WatchdogConfig
rank = int(os.environ["RANK"])
watchdog = Watchdog(WatchdogConfig(hang_s=float(sys.argv[3]), start_s=30.0, grace_s=0.5), Path(sys.argv[1]), "a-run")
print("ready", flush=True)
def waits_for_ever():
    while True:
        time.sleep(0.01)
for step in range(20):
    watchdog.beat("data", step)
    time.sleep(0.005)
    watchdog.beat("forward")
    time.sleep(0.005)
if rank != int(sys.argv[2]):
    for phase in ("data", "forward", "reduce"):
        watchdog.beat(phase, 20)
    waits_for_ever()
watchdog.beat("data", 20)
"""

HOLD_THE_GIL = """
mutex = ctypes.create_string_buffer(64)
def holds_the_gil():
    ctypes.PyDLL(None).pthread_mutex_lock(mutex)  # PyDLL keeps the GIL
holds_the_gil(); holds_the_gil()
"""
DEADLOCK = """
def deadlocks():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
deadlocks()
"""
IN_A_THREAD = """
def loads_for_ever():
    waits_for_ever()
loader = threading.Thread(target=loads_for_ever)
loader.start()
loader.join()
"""
STOPPED = "os.kill(os.getpid(), signal.SIGSTOP)"
DIES = "os.kill(os.getpid(), signal.SIGKILL)"
ENDS = "watchdog.close()"


class Job:
    """Ranks of one machine, as a launcher starts them: children of one process, one rendezvous."""

    def __init__(self, code: str, out: Path, *arguments: object, ranks: int = 2) -> None:
        self.out, self.ranks = out, []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        size = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        for rank in range(ranks):
            env = os.environ | place | size | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            line = [sys.executable, "-c", code, str(out), *map(str, arguments)]
            self.ranks.append(subprocess.Popen(line, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True))
        for rank in self.ranks:
            assert rank.stdout is not None and rank.stdout.readline() == "ready\n"

    def watchers(self) -> list[psutil.Process]:
        """Every process that watches for this run's folder, whoever its parent is by now."""
        found = []
        for candidate in psutil.process_iter():
            try:
                line = candidate.cmdline()
            except psutil.Error:
                continue
            if "consumer.watch_process" in line and str(self.out) in line[-1]:
                found.append(candidate)
        return found

    def finish(self, timeout_s: float = 30.0) -> list[int]:
        """Exit codes, once all ranks and their watcher are gone."""
        for rank in self.ranks:
            rank.communicate(timeout=timeout_s)
        _, left = psutil.wait_procs(self.watchers(), 5)
        assert not left, "the watcher outlives its ranks"
        return [rank.returncode for rank in self.ranks]

    def close(self) -> None:
        for rank in self.ranks:
            rank.kill()
            rank.communicate()
        psutil.wait_procs(self.watchers(), 5)
        for watcher in self.watchers():
            watcher.kill()

    @property
    def stacks(self) -> str:
        (path,) = self.out.glob("stacks-*.txt")
        return path.read_text()

    @property
    def status(self) -> Status:
        status = read_status(self.out)
        assert status is not None
        return status


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    started: list[Job] = []
    yield started
    for job in started:
        job.close()


def launched(jobs: list[Job], code: str, *arguments: Any, ranks: int = 2) -> Job:
    jobs.append(Job(code, *arguments, ranks=ranks))
    return jobs[-1]


def beats() -> set[Path]:
    return set(watchdog._SHARED.glob(f"inkstone-{os.getuid()}-*"))


@pytest.mark.parametrize(
    ("fault", "frame"),
    [(HOLD_THE_GIL, "in holds_the_gil"), (DEADLOCK, "in deadlocks"), (IN_A_THREAD, "in loads_for_ever")],
    ids=["held GIL", "deadlock", "stuck thread"],
)
def test_a_rank_that_hangs_is_named_with_all_stacks_and_all_ranks_are_ended(
    jobs: list[Job], tmp_path: Path, fault: str, frame: str
) -> None:
    before = beats()
    job = launched(jobs, RANK + fault, tmp_path, 1, HANG_S)
    asked = time.monotonic()
    codes = job.finish()
    assert time.monotonic() - asked < 20
    assert all(code in (-signal.SIGTERM, -signal.SIGKILL) for code in codes)
    assert (job.status.cause, job.status.rank, job.status.step) == (Cause.HANG, 1, 20)
    assert job.status.requeue and job.status.run == "a-run"
    assert frame in job.stacks and "in waits_for_ever" in job.stacks
    assert "rank 1 (process" in job.stacks and "in 'data' of step 20" in job.stacks
    assert "stacks-" in job.status.message
    assert beats() <= before, "the beats' folder is left behind"


def test_a_hang_is_found_within_its_limit_and_two_seconds(jobs: list[Job], tmp_path: Path) -> None:
    job = launched(jobs, RANK + DEADLOCK, tmp_path, 0, HANG_S, ranks=1)
    time.sleep(0.2)  # its twenty steps
    asked = time.monotonic()
    job.finish()
    assert HANG_S - 0.5 < time.monotonic() - asked < HANG_S + 2 + 1


def test_a_file_system_that_answers_no_more_does_not_keep_the_ranks(jobs: list[Job], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / STATUS)  # reading it waits for a writer that never comes
    job = launched(jobs, RANK + DEADLOCK, tmp_path, 0, HANG_S, ranks=1)
    assert job.finish() == [-signal.SIGTERM]
    assert "in deadlocks" in job.stacks


def test_a_stopped_rank_is_named_as_such(jobs: list[Job], tmp_path: Path) -> None:
    job = launched(jobs, RANK + STOPPED, tmp_path, 0, HANG_S)
    assert job.finish()[0] == -signal.SIGKILL  # it cannot even take SIGTERM
    assert (job.status.cause, job.status.rank) == (Cause.HANG, 0)
    assert "stopped by a signal" in job.status.message
    assert "(no stacks: stopped, it cannot answer)" in job.stacks and "in waits_for_ever" in job.stacks


def test_a_rank_that_is_killed_is_peer_lost_and_named(jobs: list[Job], tmp_path: Path) -> None:
    job = launched(jobs, RANK + DIES, tmp_path, 1, 30.0)
    deadline = time.monotonic() + 10
    while read_status(tmp_path) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (job.status.cause, job.status.rank, job.status.step) == (Cause.PEER, 1, 20)
    assert "without a word" in job.status.message
    assert job.ranks[0].poll() is None  # the others are the launcher's to end
    assert job.watchers()
    job.ranks[0].kill()
    job.finish()
    assert job.status.rank == 1


def test_a_healthy_job_ends_by_itself_and_leaves_nothing(jobs: list[Job], tmp_path: Path) -> None:
    before = beats()
    job = launched(jobs, RANK.replace("if rank !=", "if 0 and rank !=") + ENDS, tmp_path, 0, 5.0)
    assert job.finish() == [0, 0]
    assert not list(tmp_path.iterdir()) and beats() <= before


def test_signals_to_the_whole_job_do_not_end_the_watcher(jobs: list[Job], tmp_path: Path) -> None:
    job = launched(jobs, RANK.replace("if rank !=", "if True or rank !="), tmp_path, 1, 30.0)
    (watcher,) = job.watchers()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        watcher.send_signal(number)
    time.sleep(2 * POLL_S)
    assert watcher.is_running() and watcher.status() != psutil.STATUS_ZOMBIE


def test_killing_every_rank_at_once_ends_the_watcher_too(jobs: list[Job], tmp_path: Path) -> None:
    job = launched(jobs, RANK.replace("if rank !=", "if True or rank !="), tmp_path, 1, 30.0)
    (watcher,) = job.watchers()
    for rank in job.ranks:
        rank.kill()
    job.finish()
    _, left = psutil.wait_procs([watcher], 5)
    assert not left


class Page:
    """Beats of this very process, written by hand."""

    def __init__(self, folder: Path, number: int = 0, limit_s: float = 1.0) -> None:
        found = process(os.getpid())
        assert found is not None
        self.beat = Beat(1, os.getpid(), found[1], 0, 1, 0.0, limit_s, False, "forward")
        (folder / f"rank-{number}.stacks").write_text("")
        self.path = folder / f"rank-{number}"
        self.path.write_bytes(self.beat.pack())
        self.file = self.path.open("r+b", buffering=0)

    def say(self, raw: bytes) -> None:
        self.file.seek(0)
        self.file.write(raw)

    def next(self, step: int) -> None:
        self.beat = Beat(**vars(self.beat) | {"count": self.beat.count + 1, "step": step})
        self.say(self.beat.pack())


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    written = Page(tmp_path)
    yield written
    written.file.close()


def test_ten_thousand_steps_raise_no_false_alarm(page: Page) -> None:
    rank, draw = Rank(0, page.path, page.path.with_suffix(".stacks")), random.Random(0)
    for step in range(10_000):
        page.next(step)
        left = draw.uniform(0, 0.99)  # of a limit of 1 s, until the next beat
        while left > 0:
            rank.look(min(POLL_S, left))
            left -= POLL_S
            assert not rank.stalled, f"step {step}"
    rank.look(1.1)
    assert rank.stalled


def test_a_beat_read_while_it_is_written_counts_as_none(page: Page) -> None:
    rank = Rank(0, page.path, page.path.with_suffix(".stacks"))
    old = page.beat.pack()
    new = Beat(**vars(page.beat) | {"count": 2, "step": 9, "limit_s": 0.001}).pack()
    for cut in range(1, len(old)):
        page.say(new[:cut] + old[cut:])
        rank.look(0.0)
        assert rank.beat.step in (0, 9) and (rank.beat.step == 0) == (rank.beat.limit_s == 1.0)
    page.say(new)
    rank.look(0.0)
    assert rank.beat.step == 9


def test_a_pid_that_is_anothers_by_now_is_neither_alive_nor_signalled(page: Page) -> None:
    page.beat = Beat(**vars(page.beat) | {"born": page.beat.born - 1})
    page.say(page.beat.pack())
    rank = Rank(0, page.path, page.path.with_suffix(".stacks"))
    assert not rank.alive
    rank.signal(signal.SIGKILL)  # would end these tests


def test_a_machine_that_was_suspended_hangs_nobody(page: Page, tmp_path: Path) -> None:
    orders = Orders(tmp_path, tmp_path / "out", 1, 0.0, "", Start("job", 0.0))
    watch = Watch(Orders.parse(orders.dump()))
    watch.look(0.0)
    assert [rank.number for rank in watch.watched] == [0] and not watch.over
    watch.look(0.9)
    assert not watch.watched[0].stalled


def test_the_first_step_and_slow_phases_have_the_longer_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, float]] = []
    beat_of = Watchdog._beat

    def kept(self: Watchdog, phase: str) -> Beat:
        beat = beat_of(self, phase)
        said.append((phase, beat.limit_s))
        return beat

    monkeypatch.setattr(Watchdog, "_beat", kept)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    before = signal.getsignal(signal.SIGUSR2)
    dog = Watchdog(WatchdogConfig(hang_s=20, start_s=60), tmp_path)
    try:
        for phase, step in [("load", 0), ("data", 7), ("forward", 7), ("data", 8), ("save", 8), ("data", 5)]:
            dog.beat(phase, step)
    finally:
        dog.close()
        signal.signal(signal.SIGUSR2, before)
    assert said[:-1] == [
        ("start", 60),
        ("load", 60),
        ("data", 60),
        ("forward", 60),
        *[("data", 20), ("save", 60)],
        ("data", 20),
    ]


def test_no_limit_is_no_watchdog(tmp_path: Path) -> None:
    before = beats()
    dog = Watchdog(WatchdogConfig(hang_s=0), tmp_path)
    dog.beat("forward", 3)
    dog.close()
    assert beats() == before


def test_a_folder_of_somebody_elses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_SHARED", tmp_path)
    folder = watchdog._private(tmp_path)
    folder.chmod(0o755)
    with pytest.raises(WatchdogError, match="of this user alone"):
        Watchdog(WatchdogConfig(), tmp_path)


def test_a_beat_costs_microseconds(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR2)
    dog = Watchdog(WatchdogConfig(), tmp_path)
    try:
        start = time.perf_counter()
        for step in range(2000):
            dog.beat("forward", step)
        each = (time.perf_counter() - start) / 2000
    finally:
        dog.close()
        signal.signal(signal.SIGUSR2, before)
    assert each < 200e-6
