import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from consumer.checkpoint import CheckpointError
from consumer.endings import ENDINGS, SIGNALLED, STATUS, Cause, Start, classify, in_time, read_status, write_status
from consumer.source.group import PullError
from launch.config import ConfigError
from parallel.mesh import MeshError
from producer.api.channel import UnreachableError

FIRST = Start("job/0", 1000.0)
FAULTS = [cause for cause in Cause if cause not in SIGNALLED | {Cause.RUNNING, Cause.PEER, Cause.DONE}]


def cause_in(folder: Path) -> Cause:
    status = read_status(folder)
    assert status is not None
    return status.cause


def test_every_cause_has_its_own_code_and_none_is_torchruns() -> None:
    codes = [ENDINGS[cause].code for cause in Cause]
    assert len(set(codes)) == len(codes) == len(ENDINGS)
    assert [cause for cause in Cause if ENDINGS[cause].code in (0, 1)] == [Cause.DONE, Cause.BUG]
    assert ENDINGS[Cause.SETTING].code == 2
    assert (ENDINGS[Cause.INTERRUPTED].code, ENDINGS[Cause.PREEMPTED].code) == (130, 143)
    assert max(codes) < 256


@pytest.mark.parametrize("cause", list(Cause))
def test_a_launcher_reads_what_the_table_says(tmp_path: Path, cause: Cause) -> None:
    assert write_status(tmp_path, cause, step=7, message="why", rank=3, run="a-run", start=FIRST)
    said = json.loads((tmp_path / STATUS).read_text())
    assert (said["cause"], said["code"], said["requeue"]) == (cause.value, ENDINGS[cause].code, ENDINGS[cause].requeue)
    assert (said["step"], said["rank"], said["message"], said["run"]) == (7, 3, "why", "a-run")
    assert said["host"] and said["time"] > 1e9
    assert read_status(tmp_path) is not None


@pytest.mark.parametrize("first", [*FAULTS, Cause.DONE, *sorted(SIGNALLED)])
def test_the_first_real_cause_stands(tmp_path: Path, first: Cause) -> None:
    assert write_status(tmp_path, first, step=1, start=FIRST)
    for second in Cause:
        assert not write_status(tmp_path, second, step=2, start=FIRST)
        assert cause_in(tmp_path) is first


@pytest.mark.parametrize("real", FAULTS)
def test_a_fault_replaces_running_and_peer_lost(tmp_path: Path, real: Cause) -> None:
    assert write_status(tmp_path, Cause.RUNNING, step=0, start=FIRST)
    assert write_status(tmp_path, Cause.PEER, step=0, start=FIRST)
    assert write_status(tmp_path, real, step=0, start=FIRST)
    assert not write_status(tmp_path, Cause.PEER, step=0, start=FIRST, sure=True)
    assert cause_in(tmp_path) is real


def test_who_saw_a_peer_die_replaces_who_only_missed_it_and_a_signal_replaces_neither(tmp_path: Path) -> None:
    assert write_status(tmp_path, Cause.PEER, step=0, rank=0, start=FIRST)
    assert not write_status(tmp_path, Cause.PEER, step=0, rank=2, start=FIRST)
    assert not write_status(tmp_path, Cause.PREEMPTED, step=0, rank=2, start=FIRST)
    assert write_status(tmp_path, Cause.PEER, step=0, rank=1, start=FIRST, sure=True)
    for waiting in (Cause.PEER, Cause.HANG):
        assert not write_status(tmp_path, waiting, step=0, rank=3, start=FIRST, sure=True)
    status = read_status(tmp_path)
    assert status is not None and status.rank == 1


def test_a_later_start_replaces_whatever_an_earlier_one_wrote(tmp_path: Path) -> None:
    assert write_status(tmp_path, Cause.NUMBERS, step=5, start=FIRST)
    assert write_status(tmp_path, Cause.RUNNING, step=0, start=Start("job/1", 1000.0))
    # The same fixed port, started again by hand: one id, a later birth.
    before = read_status(tmp_path)
    assert before is not None
    again = Start("job/1", before.time + 60)
    assert write_status(tmp_path, Cause.PEER, step=0, start=again)
    assert cause_in(tmp_path) is Cause.PEER


def test_a_late_word_of_an_earlier_start_changes_nothing(tmp_path: Path) -> None:
    assert write_status(tmp_path, Cause.RUNNING, step=0, start=Start("job/1", 1060.0))
    assert not write_status(tmp_path, Cause.PEER, step=5, start=FIRST, sure=True)
    assert cause_in(tmp_path) is Cause.RUNNING


def test_a_process_of_its_own_is_a_start_of_its_own(tmp_path: Path) -> None:
    code = "import sys, pathlib; from consumer.endings import Cause, write_status;"
    code += "sys.exit(not write_status(pathlib.Path(sys.argv[1]), Cause(sys.argv[2]), step=0))"
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    for cause in ("preempted", "bug"):
        done = subprocess.run([sys.executable, "-c", code, tmp_path, cause], env=environment, timeout=60)
        assert done.returncode == 0
    assert cause_in(tmp_path) is Cause.BUG


def test_ranks_of_one_torchrun_share_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    for name, value in zip(names, ("0", "none", "0", "10.0.0.1", "4711"), strict=True):
        monkeypatch.setenv(name, value)
    first = Start.here()
    monkeypatch.setenv("RANK", "1")
    assert Start.here().id == first.id
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert Start.here().id != first.id


def test_many_writers_at_once_leave_one_whole_status(tmp_path: Path) -> None:
    code = "import sys, pathlib; from consumer.endings import *;"
    code += "print(write_status(pathlib.Path(sys.argv[1]), Cause.HANG, step=0, rank=int(sys.argv[2]),"
    code += " start=Start('job', 0.0)))"
    line = [sys.executable, "-c", code, str(tmp_path)]
    writers = [subprocess.Popen([*line, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(6)]
    wrote = [writer.communicate(timeout=60)[0].strip() for writer in writers]
    assert wrote.count("True") == 1
    status = read_status(tmp_path)
    assert status is not None and status.rank == wrote.index("True")
    assert {path.name for path in tmp_path.iterdir()} == {STATUS, f".{STATUS}.lock"}


def test_on_a_full_disk_the_block_that_is_there_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write_status(tmp_path, Cause.RUNNING, step=0, start=FIRST)
    size = (tmp_path / STATUS).stat().st_size

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert write_status(tmp_path, Cause.DISK, step=9, message="x" * 10_000, start=FIRST)
    assert cause_in(tmp_path) is Cause.DISK
    assert (tmp_path / STATUS).stat().st_size == size


def test_a_folder_that_cannot_be_written_is_logged_and_raises_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert not write_status(tmp_path / "file", Cause.BUG, step=3, message="the reason", start=FIRST)
    assert "the reason" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cause": "boredom"}', '{"cause": "done"}'])
def test_an_unreadable_status_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / STATUS).write_text(text)
    assert read_status(tmp_path) is None
    assert write_status(tmp_path, Cause.DONE, step=1, start=FIRST)


def test_a_file_system_that_answers_no_more_holds_up_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / STATUS)  # reading it waits for a writer that never comes
    start = time.monotonic()
    assert not in_time(lambda: write_status(tmp_path, Cause.HANG, step=0, start=FIRST), 0.3)
    assert time.monotonic() - start < 5
    with (tmp_path / STATUS).open("w"):  # lets it go
        pass
    assert in_time(lambda: None, 5)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class _SaysItselfError(RuntimeError):
    cause = Cause.CORRUPTION


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConfigError("train.steps: 0"), Cause.SETTING),
        (MeshError("mesh.tp: 3"), Cause.SETTING),
        (FileNotFoundError(errno.ENOENT, "No such file"), Cause.SETTING),
        (PermissionError(errno.EACCES, "Permission denied"), Cause.SETTING),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), Cause.MEMORY),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), Cause.MEMORY),
        (MemoryError(), Cause.MEMORY),
        (OSError(errno.ENOSPC, "No space left on device"), Cause.DISK),
        (OSError(errno.EROFS, "Read-only file system"), Cause.DISK),
        (caused(CheckpointError("not written"), OSError(errno.EDQUOT, "Disk quota exceeded")), Cause.DISK),
        (CheckpointError("step-8: weights.safetensors: 1 byte differs"), Cause.DAMAGE),
        (PullError("train step 3 unit 0: no answer for 300 s"), Cause.STARVATION),
        (UnreachableError("127.0.0.1:9"), Cause.STARVATION),
        (dist.DistBackendError("NCCL communicator was aborted on rank 0"), Cause.PEER),
        (dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed"), Cause.PEER),
        (RuntimeError(GLOO), Cause.PEER),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), Cause.PEER),
        (KeyboardInterrupt(), Cause.INTERRUPTED),
        (SystemExit(None), Cause.DONE),
        (SystemExit(143), Cause.PREEMPTED),
        (SystemExit("words"), Cause.BUG),
        (_SaysItselfError("rank 3"), Cause.CORRUPTION),
        (ValueError("shapes differ"), Cause.BUG),
        (json.JSONDecodeError("Expecting value", "", 0), Cause.BUG),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Cause.BUG),
        (AssertionError(), Cause.BUG),
    ],
)
def test_an_error_is_classified(error: BaseException, cause: Cause) -> None:
    assert classify(error) is cause


def test_a_rendezvous_that_nobody_serves_is_peer_lost() -> None:
    with pytest.raises(RuntimeError) as caught:
        dist.TCPStore("127.0.0.1", 1, 2, False, timeout=timedelta(seconds=0.3))
    assert classify(caught.value) is Cause.PEER


def test_status_can_be_rebuilt_from_its_fields(tmp_path: Path) -> None:
    assert write_status(tmp_path, Cause.HANG, step=4, rank=1, start=FIRST)
    status = read_status(tmp_path)
    assert status is not None and replace(status, rank=1) == status
