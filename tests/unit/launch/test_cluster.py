"""The cluster files: clean scripts, which Slurm takes and runs on this machine, and a Job of Kubernetes' schema."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "launch" / "cluster"

# In place of training: ranks that meet, wait for SIGUSR1 and say that they want to go on.
STUB = """
import json, os, pathlib, signal, sys, time
here, got = pathlib.Path.cwd(), []
if "--show" in sys.argv:
    print(json.dumps({"run": {"dir": str(here / "run")}}))
    sys.exit()
signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
import torch, torch.distributed as dist
dist.init_process_group("gloo")
seen = torch.ones(1)
dist.all_reduce(seen)
said = [sys.argv[1:], seen.item(), os.environ["SLURMD_NODENAME"]]
aside = here / f".rank-{dist.get_rank()}"
aside.write_text(json.dumps(said))
aside.rename(here / f"rank-{dist.get_rank()}.json")
while not got:
    time.sleep(0.05)
dist.barrier()
if dist.get_rank() == 0:
    (here / "run").mkdir(exist_ok=True)
    (here / "run" / "status.json").write_text(json.dumps({"requeue": True}))
os._exit(138)
"""

CONF = """
ClusterName=dry
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={port}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
GresTypes=gpu
ReturnToService=2
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=64 RealMemory=8000 Gres=gpu:8
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=64 RealMemory=8000 Gres=gpu:8
PartitionName=dry Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def needed(program: str) -> str:
    """The program's path; without it the test fails with what to do."""
    path = shutil.which(program)
    assert path, f"{program} is not installed: run make debian (as root), or apt-get install slurm-wlm shellcheck"
    return path


def until(holds: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s: {what()}"
        time.sleep(0.2)


class Slurm:
    """A cluster of two machines that are both this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("state", "spool-node1", "spool-node2"):
            (folder / name).mkdir()
        for gpu in range(8):
            (folder / f"gpu{gpu}").touch()  # stand for devices; only counted
        port, first, second = _ports(3)
        host = socket.gethostname().split(".")[0]
        user = "root" if os.getuid() == 0 else os.environ["USER"]
        conf = CONF.format(host=host, user=user, folder=folder, port=port, first=first, second=second)
        (folder / "slurm.conf").write_text(conf)
        (folder / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu File={folder}/gpu[0-7]\n")
        self.env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHON": sys.executable}
        self.env |= {"RENDEZVOUS_HOST": "127.0.0.1", "RESTARTS": "0", "OMP_NUM_THREADS": "1"}
        lines = [["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", "node1"], ["slurmd", "-D", "-N", "node2"]]
        self._daemons = [self._start(line, folder / f"{n}.log") for n, line in enumerate(lines)]
        until(lambda: self.run("sinfo", "-h", "-N", "-o", "%T").stdout.split() == ["idle"] * 2, 60, self.logs)

    def _start(self, line: list[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            path = needed(line[0])
            return subprocess.Popen([path, *line[1:]], env=self.env, stdout=file, stderr=file, start_new_session=True)

    def run(self, *line: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """A command of Slurm's."""
        return subprocess.run(
            [needed(line[0]), *line[1:]], env=self.env, cwd=cwd, capture_output=True, text=True, timeout=60
        )

    def logs(self) -> str:
        """What the daemons and jobs last said."""
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in self.folder.rglob("*.log"))

    def close(self) -> None:
        """End the jobs and the daemons."""
        self.run("scancel", "--signal=KILL", "--state=RUNNING", "--full", "--me")
        self.run("scancel", "--me")
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons:
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    for program in ("slurmctld", "slurmd", "sbatch", "srun"):
        needed(program)
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.close()


@pytest.mark.parametrize("name", ["node.sh", "pretrain.sbatch"])
def test_scripts_have_no_fault_that_shellcheck_finds(name: str) -> None:
    done = subprocess.run([needed("shellcheck"), str(CLUSTER / name)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_slurm_would_start_the_job_and_refuses_what_no_machine_has(slurm: Slurm) -> None:
    script = str(CLUSTER / "pretrain.sbatch")
    good = slurm.run("sbatch", "--test-only", "--nodes=2", script, "launch/configs/pretrain-256p.toml")
    assert good.returncode == 0 and "using 128 processors on nodes node[1-2]" in good.stderr, good.stderr
    for wrong in ("--nodes=3", "--gpus-per-node=9"):
        assert slurm.run("sbatch", "--test-only", "--nodes=2", wrong, script, "x.toml").returncode != 0


def test_a_job_meets_over_two_machines_and_is_queued_again_after_its_signal(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "launch" / "cluster").mkdir(parents=True)
    (tmp_path / "launch" / "pretrain.py").write_text(STUB)
    shutil.copy(CLUSTER.parent / "requeue.py", tmp_path / "launch")
    for name in ("node.sh", "pretrain.sbatch"):
        shutil.copy(CLUSTER / name, tmp_path / "launch" / "cluster")
    asked = ("--nodes=2", "--gpus-per-node=1", "--cpus-per-task=1", "--mem=100", "--oversubscribe", "--exclusive=user")
    sent = slurm.run("sbatch", *asked, "launch/cluster/pretrain.sbatch", "my.toml", "run.seed=3", cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    job = sent.stdout.split()[-1]
    until(lambda: len(list(tmp_path.glob("rank-*.json"))) == 2, 150, lambda: slurm.logs() + _log(tmp_path))
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert [rank[:2] for rank in ranks] == [[["my.toml", "run.seed=3"], 2.0]] * 2
    assert {rank[2] for rank in ranks} == {"node1", "node2"}
    slurm.run("scancel", "--signal=USR1", job)
    until(lambda: "Restarts=1" in slurm.run("scontrol", "show", "job", job).stdout, 60, lambda: _log(tmp_path))
    assert "requeue: yes" in _log(tmp_path)


def _log(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace")[-3000:] for path in folder.glob("inkstone-*.log"))


@pytest.mark.parametrize(("said", "answer"), [('{"requeue": true}', "yes"), ('{"requeue": false}', "no"), ("{", "no")])
def test_a_run_is_started_again_only_where_its_status_says_so(tmp_path: Path, said: str, answer: str) -> None:
    (tmp_path / "status.json").write_text(said)
    line = [sys.executable, str(CLUSTER.parent / "requeue.py"), str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{answer}\n"


def test_the_kubernetes_job_is_of_the_schema() -> None:
    # Not above: its schemas take a moment.
    import kubernetes_validate

    documents = list(yaml.safe_load_all((CLUSTER / "pretrain.k8s.yaml").read_text()))
    assert [item["kind"] for item in documents] == ["Service", "Job"]
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)
    service, job = documents
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job | {"spec": job["spec"] | {"machines": 8}}, "1.31", strict=True)
    # What the schema cannot know: the numbers that must agree.
    spec = job["spec"]
    pod = spec["template"]["spec"]
    environment = {item["name"]: item["value"] for item in pod["containers"][0]["env"]}
    assert int(environment["NODES"]) == spec["completions"] == spec["parallelism"]
    assert int(environment["GPUS"]) == pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert environment["RENDEZVOUS"].startswith(f"{job['metadata']['name']}-0.{pod['subdomain']}:")
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
