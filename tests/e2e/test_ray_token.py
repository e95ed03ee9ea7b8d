"""The Ray that the example cluster starts, started for real: nobody gives it work without the token."""

import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from producer.api.channel import BindError
from producer.fleet import Fleet
from tests.e2e.test_fleet import JOB, config, until

ROOT = Path(__file__).parents[2]
CLUSTER = yaml.safe_load((ROOT / "launch" / "cluster" / "ray-producers.yaml").read_text())
STARTS = [line for side in ("head", "worker") for line in CLUSTER[f"{side}_start_ray_commands"] if "ray start" in line]


def test_every_ray_of_the_example_asks_for_the_token_and_has_no_dashboard() -> None:
    assert len(STARTS) == 2 and all("RAY_AUTH_MODE=token" in line for line in STARTS)
    assert "--include-dashboard=false" in STARTS[0] and "dashboard-host" not in STARTS[0]


def test_a_fleet_open_to_other_machines_without_tls_does_not_start(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    with (
        pytest.raises(BindError, match=r"fleet\.host: 0\.0\.0\.0 .* set fleet\.tls"),
        Fleet(config(tmp_path, host="0.0.0.0"), JOB),
    ):
        pass
    assert set(psutil.Process().children(recursive=True)) <= before and not (tmp_path / "coordinator.json").exists()


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        return [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


@pytest.fixture
def job_server() -> Iterator[int]:
    """The port of the job server of a head node, started by the example's own line; only its places are others."""
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    gcs, clients, agent, port = free_ports(4)
    said = shlex.split(STARTS[0].partition("&& ")[2])
    env = (
        os.environ
        | {"HOME": str(folder)}
        | dict(word.split("=", 1) for word in said if word.partition("=")[0].isupper())
    )
    drop = ("--autoscaling-config", "--include-dashboard", "--port")
    options = [word for word in said[said.index("start") :] if word.startswith("--") and not word.startswith(drop)]
    places = [f"--port={gcs}", f"--ray-client-server-port={clients}", f"--dashboard-agent-listen-port={agent}"]
    places += [f"--dashboard-port={port}", "--include-dashboard=true", f"--temp-dir={folder}/r"]
    ray = [str(Path(sys.executable).with_name("ray"))]
    try:
        subprocess.run([*ray, "get-auth-token", "--generate"], env=env, check=True, capture_output=True, timeout=120)
        line = [*ray, "start", *options, *places, "--node-ip-address=127.0.0.1", "--num-cpus=1"]
        started = subprocess.run(line, env=env, capture_output=True, text=True, timeout=240)
        assert started.returncode == 0, started.stdout + started.stderr
        yield port
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if f"{folder}/r" in " ".join(process.info["cmdline"] or []):
                with suppress(psutil.Error):
                    process.kill()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_work_without_the_token_is_refused_and_not_done(job_server: int, tmp_path: Path) -> None:
    fired = tmp_path / "fired"
    body = f'{{"entrypoint": "touch {fired}"}}'.encode()

    def posted(headers: dict[str, str]) -> int:
        said = {"Content-Type": "application/json"} | headers
        request = urllib.request.Request(f"http://127.0.0.1:{job_server}/api/jobs/", data=body, headers=said)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    until(lambda: posted({}) != 0, 120.0)
    assert posted({}) == 401
    assert posted({"Authorization": "Bearer wrong"}) == 403
    time.sleep(3.0)
    assert not fired.exists()
