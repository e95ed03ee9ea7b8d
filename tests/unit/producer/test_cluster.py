"""What a private Ray leaves behind, whoever ends: no process, no folder. Without Ray: the guard around it alone."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from producer.cluster import ClusterError, _temporary_folder, check_version
from producer.lock import exclusive

# Starts a process that goes on writing to a folder, and dies before it.
ORPHAN = """
import subprocess, sys
code = "import sys, time; f = open(sys.argv[1] + '/agent.log', 'w'); print('up', flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code, sys.argv[1]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
child.stdout.readline()
print(child.pid, flush=True)
"""


def test_an_orphan_that_writes_to_the_folder_ends_with_it_and_others_do_not() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        with pytest.raises(KeyboardInterrupt), _temporary_folder() as folder:
            ran = subprocess.run([sys.executable, "-c", ORPHAN, str(folder)], capture_output=True, check=True)
            orphan = psutil.Process(int(ran.stdout))
            assert orphan.is_running() and orphan.ppid() == psutil.Process().pid
            raise KeyboardInterrupt
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
        assert not folder.exists() and not folder.with_suffix(".owner").exists()
        assert other.poll() is None
        other.communicate(b"\n")


def test_folders_of_dead_owners_are_removed_and_those_of_living_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("dead", "alive", "unknown"):
        (tmp_path / f"ink-{name}" / "session").mkdir(parents=True)
    (tmp_path / "ink-dead.owner").touch()
    with exclusive(tmp_path / "ink-alive.owner", timeout_s=0), _temporary_folder():
        left = sorted(path.name for path in tmp_path.glob("ink-*"))
    assert [name for name in left if "dead" in name] == []
    assert {"ink-alive", "ink-alive.owner", "ink-unknown"} <= set(left)


def test_the_path_stays_short_enough_for_rays_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with _temporary_folder() as folder:
        assert len(str(folder)) + 63 <= 107
    assert not list(deep.iterdir())


# Watches a folder, starts a process as Ray does, which must not end with its parent, and is killed.
KILLED = """
import os, subprocess, sys
from producer.cluster import ClusterError, _temporary_folder, check_version
with _temporary_folder() as folder:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", f"--temp-dir={folder}/x"])
    print(child.pid, folder, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_owner_leaves_ends_at_once() -> None:
    ran = subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, timeout=60)
    pid, folder = ran.stdout.split()
    deadline = time.monotonic() + 30
    while psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.05)
    while Path(folder).exists():
        assert time.monotonic() < deadline, "its folder stays"
        time.sleep(0.05)


def test_a_ray_with_known_holes_is_refused() -> None:
    for version in ("2.9.3", "2.52.0", "2.55.1"):
        with pytest.raises(ClusterError, match=f"ray {version} is installed; versions before 2.56"):
            check_version(version)
    for version in ("2.56.0", "2.60.0", "3.0.0rc1"):
        check_version(version)
