"""The fleet as it really runs: on a private Ray, with processes killed, and nothing left behind."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from consumer.source.flight import FlightSource
from consumer.source.producers import PullConfig
from producer.api.channel import Channel, DeniedError, read_registry
from producer.api.unit import UnitId, unpack
from producer.fleet import Fleet, FleetError, make_token
from producer.fleet_config import FleetConfig
from producer.synthetic import SyntheticJob, SyntheticMaker
from tests.unit.producer.photos import make_photos

ROOT = Path(__file__).parents[2]
JOB = SyntheticJob(units=2, validation_units=1, samples=2, bucket="64x64", tokens=8, width=8)


def family() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def named(part: str) -> list[psutil.Process]:
    return [process for process in family() if part in _title(process)]


def _title(process: psutil.Process) -> str:
    """What a process calls itself; nothing once it has ended, which it may at any moment."""
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.Error:
        return ""


def living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; who is to take note of their end may be slow to."""

    def lives(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [process for process in processes if lives(process)]


def until(fine: Callable[[], Any], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not fine():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def schedule(step: int) -> list[UnitId]:
    return [UnitId("train", step, unit) for unit in range(JOB.units)]


def config(folder: Path, **over: Any) -> FleetConfig:
    small = {"workers": 2, "cpus_per_worker": 0.25, "horizon_bytes": 100_000, "heartbeat_s": 0.2, "lease_s": 2.0}
    return FleetConfig(registry=folder / "coordinator.json", **small | over)


def test_a_training_outlives_killed_workers_and_coordinators_and_nothing_is_left(tmp_path: Path) -> None:
    before = set(family())
    maker = SyntheticMaker(JOB)
    with Fleet(config(tmp_path), JOB) as fleet:
        assert read_registry(tmp_path / "coordinator.json") == fleet.address
        assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
        channel = Channel(fleet.address, "wrong")
        with pytest.raises(DeniedError):
            channel.ask_raw("status", b"", 5.0)
        channel.close()
        check_loopback()
        source = FlightSource(PullConfig(registry=tmp_path / "coordinator.json", wait_s=60.0), "t", 1)
        assert source.hello(0) == maker.offer
        source.follow(schedule, 0, 12)
        for step in range(12):
            if step == 4:
                named("WorkerHost")[0].kill()
            if step == 8:
                named("CoordinatorHost")[0].kill()
            for unit in schedule(step):
                assert source.next_unit(unit).equals(maker(unit)[0])
            source.ack(step)
        source.close()
        until(lambda: len(fleet.status()["workers"]) == 2)
        mine = set(family()) - before
        start = time.monotonic()
    assert time.monotonic() - start < 5.0
    assert not living(mine)
    assert not (tmp_path / "coordinator.json").exists()


def check_loopback() -> None:
    """Nothing of the fleet can be reached from another machine."""
    for process in [psutil.Process(), *family()]:
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1"), process.cmdline()[:1]


def test_a_fleet_too_large_for_the_machine_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with (
        pytest.raises(FleetError, match=r"fleet.workers: 50 of 10 CPUs .* need 500"),
        Fleet(config(tmp_path, workers=50, cpus_per_worker=10.0), JOB),
    ):
        pass
    assert not (tmp_path / "coordinator.json").exists()


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    token = make_token(tmp_path / "token")
    assert make_token(tmp_path / "token") == token and len(token) >= 32
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(FleetError, match="chmod 600"):
        make_token(tmp_path / "token")


def produce(folder: Path, *overrides: str) -> "subprocess.Popen[str]":
    line = [sys.executable, "launch/produce.py", "launch/configs/smoke.toml", f"run.dir={folder}", *overrides]
    env = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, encoders: Path) -> list[str]:
    """Overrides for a small source, its index and tiny encoders."""
    folder = make_photos(tmp_path_factory.mktemp("photos"))
    recipe = 'recipe={resolutions=[64], aspects=["1:1"], units=2, samples=4, validation_samples=2}'
    return [
        f"encoder.root={encoders}",
        f"curate.index={folder}/index",
        f"source.path={folder}/raw",
        "source.also={}",
        recipe,
    ]


def test_a_missing_index_is_said_in_one_message_before_anything_starts(tmp_path: Path, encoders: Path) -> None:
    job = produce(tmp_path, f"encoder.root={encoders}")
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 2, said
    assert "run launch/curate.py first" in said and "Traceback" not in said and len(said.splitlines()) == 1


def test_the_command_serves_real_units_until_it_is_told_to_end(tmp_path: Path, photos: list[str]) -> None:
    job = produce(
        tmp_path, *photos, "fleet.lease_s=3", "fleet.metrics_port=0", "--report", str(tmp_path / "report.json")
    )
    assert job.stdout is not None
    said = [job.stdout.readline()]
    assert said[0].startswith("ready: 1 workers"), said[0] + job.stdout.read()
    source = FlightSource(PullConfig(registry=tmp_path / "fleet" / "coordinator.json", wait_s=60.0), "t", 1)
    welcome = source.hello(0)
    missing = 0
    for step in range(3):
        for number in range(welcome.units):
            header, samples = unpack(source.fetch(UnitId("train", step, number)))
            missing += header.rejected
            assert len(samples) + header.rejected == 4
    source.close()
    mine = psutil.Process(job.pid).children(recursive=True)
    while "units ahead" not in said[-1]:
        said.append(job.stdout.readline())
        assert said[-1], said
    assert "images/s" in said[-1] and "t at step" in said[-1]
    assert any("ranks" in line for line in said[1:-2]), "the imbalance that is predicted"
    where = re.fullmatch(r"metrics at (http://127\.0\.0\.1:\d+/metrics)\n", said[-2])
    assert where, said
    # Once the next look at the worker's counters was had.
    until(lambda: re.search(r'stage_images_total\{stage="vae",worker="worker-0"\} [1-9]', scrape(where[1])), 60)
    start = time.monotonic()
    job.send_signal(signal.SIGINT)
    said += [job.communicate(timeout=20)[0]]
    assert time.monotonic() - start < 5.0
    assert job.returncode == 0 and said[-1].endswith("ended\n")
    until(lambda: not living(mine), 5)
    assert not (tmp_path / "fleet" / "coordinator.json").exists()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["units"] >= 8 and report["images"] > 0 and report["rejected"] >= missing > 0
    # A unit may have been made and not be heard of any more.
    assert len((tmp_path / "fleet" / "rejects.jsonl").read_text().splitlines()) >= report["rejected"]


def scrape(where: str) -> str:
    return str(urllib.request.urlopen(where, timeout=30).read().decode())


def test_a_signal_while_it_starts_leaves_nothing(tmp_path: Path, photos: list[str]) -> None:
    job = produce(tmp_path, *photos)
    until(lambda: len(psutil.Process(job.pid).children()) > 2, 60)
    mine = psutil.Process(job.pid).children(recursive=True)
    start = time.monotonic()
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=20)
    assert time.monotonic() - start < 10.0
    assert job.returncode == 130 and "Traceback" not in said, said
    until(lambda: not living(mine), 5)
    assert not (tmp_path / "fleet" / "coordinator.json").exists()


def test_the_example_cluster_passes_rays_own_check() -> None:
    said = yaml.safe_load((ROOT / "launch" / "cluster" / "ray-producers.yaml").read_text())
    validate_config(prepare_config(said))
    said["provider"]["typo"] = said["min_workerz"] = 1
    with pytest.raises(Exception, match="min_workerz"):
        validate_config(prepare_config(said))
