"""Units on the same machine come by a Unix socket, which only its user reaches; without one, by TCP."""

import fcntl
import mmap
import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from producer.api import local
from producer.api.local import far, near, new_socket, raw, sweep, together
from producer.api.parcel import DENIED, HEAD, MAPPED, SEALS, CutError, Line
from producer.api.unit import UnitId
from tests.unit.producer.farm import JOB, TOKEN, farm, train, until
from tests.unit.producer.test_worker import made, pull

# Units that are worth a file.
LARGE = JOB.model_copy(update={"tokens": 256, "width": 896})


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
        plain, unix = worker._doors._doors
        assert unix.turnstile._hosts and not plain.turnstile._hosts
        assert far(worker.address) == f"127.0.0.1:{worker._doors._server.port}"
    assert list(apart.glob("*")) == []


def test_the_socket_asks_for_the_token_too(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        path = near(running.worker("w0", local=True).address)
        assert path is not None
        line = Line(path)
        assert line.ask(TOKEN[:-1], train(0, 0), 10.0)[0] == DENIED
        line.close()


def test_memory_that_could_change_or_shrink_under_its_reader_is_not_taken(apart: Path) -> None:
    path, raw = new_socket(), b"x" * (1 << 20)
    assert path is not None
    for seals in (0, fcntl.F_SEAL_GROW, SEALS & ~fcntl.F_SEAL_SHRINK, None):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()
            line = Line(path)
            other, _ = server.accept()
            file = os.memfd_create("unit", os.MFD_ALLOW_SEALING)
            os.write(file, raw)
            if seals:
                fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
            files = [file] if seals is not None else []
            socket.send_fds(other, [HEAD.pack(MAPPED, len(raw))], files)
            with pytest.raises(CutError, match="files came for" if seals is None else "can still be changed"):
                line.ask(TOKEN, train(0, 0), 10.0)
            os.close(file)
            other.close()
            line.close()
        path.unlink()


def test_a_unit_that_was_handed_over_stays_when_its_worker_forgets_it_and_cannot_be_written(tmp_path: Path) -> None:
    with farm(tmp_path, LARGE) as running:
        worker = running.worker("w0", local=True)
        source = running.source()
        source.hello(0)
        arrived = source.take(UnitId("validation", 0, 0))
        held = worker._ring.serve(UnitId("validation", 0, 0), near=True)
        assert held is not None and held.file is not None, "it came as bytes"
        file = held.file.descriptor
        with pytest.raises(OSError):
            os.ftruncate(file, 1)
        with pytest.raises(OSError):
            mmap.mmap(file, 4096)
        before = arrived.batch.serialize().to_pybytes()
        worker._ring.forget(UnitId("validation", 0, 0))
        del held
        assert arrived.batch.serialize().to_pybytes() == before
        assert not arrived.samples[0].text.flags.writeable


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
        assert near(together("h:1", 7, path)) == path
        for elsewhere in (f"/tmp/{path.name}", f"{path.parent}/../{path.name}", f"{path}/x", ""):
            assert near(f"h:1 unix:{elsewhere}") is None
        assert near(f"h:1 {path}") is None and near("h:1") is None
        assert raw(together("h:1", 7, path)) == raw("h:1 raw:7") == ("h", 7) and raw("[::1]:1 raw:7") == ("::1", 7)
        for without in (together("h:1", None, path), "h:1 raw:", "h:1 raw:x", "h:1 raw:70000", "h:1"):
            assert raw(without) is None
        apart.chmod(0o770)
        assert near(together("h:1", 7, path)) is None and new_socket() is None
        apart.chmod(0o700)
        os.rename(apart, apart.with_name("moved"))
        apart.symlink_to(apart.with_name("moved"))
        assert near(together("h:1", 7, path)) is None and new_socket() is None


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
