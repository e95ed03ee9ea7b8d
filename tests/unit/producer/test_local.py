"""Units on the same machine come by a Unix socket, which only its user reaches; without one, by TCP."""

import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from producer.api import local
from producer.api.channel import Channel, DeniedError
from producer.api.local import both, far, near, new_socket, sweep
from tests.unit.producer.farm import TOKEN, farm, train, until
from tests.unit.producer.test_worker import made, pull, read


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test's for sockets; short, as their paths must be."""
    folder = Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))
    monkeypatch.setattr(local, "_folder", lambda: folder / "sockets")
    return folder / "sockets"


def test_a_training_on_the_same_machine_pulls_through_the_socket(tmp_path: Path, apart: Path) -> None:
    with farm(tmp_path) as running:
        worker = running.worker("w0", local=True)
        path = near(worker.address)
        assert path is not None and stat.S_IMODE(apart.stat().st_mode) == 0o700
        assert pull(running, 4) == made(4)
        tcp, unix = worker._doors._servers
        assert unix.turnstile._hosts and not tcp.turnstile._hosts
        assert far(worker.address) == f"127.0.0.1:{tcp.port}"
    assert list(apart.glob("*")) == []


def test_the_socket_asks_for_the_token_too(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        channel = Channel(running.worker("w0", local=True).address, TOKEN[:-1])
        with pytest.raises(DeniedError):
            read(channel, train(0, 0))
        channel.close()


def test_where_nobody_answers_at_the_socket_units_come_by_tcp(tmp_path: Path, apart: Path) -> None:
    with farm(tmp_path) as running:
        address = running.worker("w0", local=True).address
        until(lambda: running.status()["units_kept"] == 3)
        for path in apart.glob("*"):
            path.unlink()
        assert near(address) is None
        assert pull(running, 2) == made(2)


def test_no_socket_is_taken_that_another_user_could_have_put_there(apart: Path) -> None:
    path = new_socket()
    assert path is not None
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert near(both("h:1", path)) == path
        for elsewhere in (f"/tmp/{path.name}", f"{path.parent}/../{path.name}", f"{path}/x", ""):
            assert near(f"h:1 unix:{elsewhere}") is None
        assert near(f"h:1 {path}") is None and near("h:1") is None
        apart.chmod(0o770)
        assert near(both("h:1", path)) is None and new_socket() is None
        apart.chmod(0o700)
        os.rename(apart, apart.with_name("moved"))
        apart.symlink_to(apart.with_name("moved"))
        assert near(both("h:1", path)) is None and new_socket() is None


def test_sockets_of_the_dead_are_swept_and_those_of_the_living_stay(apart: Path) -> None:
    alive, dead = new_socket(), new_socket()
    assert alive and dead
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(alive))
        server.listen()
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(dead))
        sweep()
        assert list(apart.glob("*")) == [alive]
    sweep()
    assert not apart.exists()
    sweep()
