"""Training jobs that faults are planted in: start one, wait for its end, read what it left."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from consumer.metrics import lines
from consumer.pieces import CheckpointReader
from launch.child import kill
from producer.coordinator import Limits
from producer.coordinator_server import CoordinatorServer
from producer.synthetic import SyntheticJob, SyntheticMaker
from producer.worker import Worker, WorkerSetup
from tests.faults.forked_torchrun import Launchers
from tests.faults.planted import SEEN, Fault

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-tests"
UNITS, WIDTH, CHANNELS = 4, 64, 16

# A model of milliseconds a step, in which nothing but the layout may change a number.
TINY = (
    "model.num_layers=2",
    "model.attention_head_dim=16",
    "model.axes_dims_rope=[4,6,6]",
    f"recipe.units={UNITS}",
    "recipe.resolutions=[64]",
    "schedule.kind=constant",
    "schedule.warmup_steps=2",
    "optim.bucket_elements=20000",
    "mesh.timeout_s=60",
)


def write_encoder_facts(root: Path) -> None:
    """All that a trainer reads of its encoders: their latents' statistics and widths."""
    facts = {
        "vae": {"z_dim": CHANNELS, "latents_mean": [0.1] * CHANNELS, "latents_std": [1.5] * CHANNELS},
        "text_encoder": {"hidden_size": WIDTH},
    }
    for name, said in facts.items():
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps(said))


class Producers:
    """A coordinator and a worker of random units in this process; `stop` ends them."""

    def __init__(self, folder: Path, *, validation_units: int = 4, bucket: str = "64x64", tokens: int = 9) -> None:
        job = SyntheticJob(
            units=UNITS, validation_units=validation_units, samples=2, bucket=bucket, tokens=tokens, width=WIDTH
        )
        maker = SyntheticMaker(job)
        self._server = CoordinatorServer(
            maker.offer, Limits(horizon_bytes=1 << 24), host="127.0.0.1", port=0, access=TOKEN
        )
        self._worker = Worker(WorkerSetup("synthetic", lambda: self._server.address, TOKEN), maker)
        self.token = folder / "token"
        self.token.write_text(TOKEN)

    def overrides(self, wait_s: float = 40.0) -> tuple[str, ...]:
        """The settings that let a trainer find them."""
        said = f'address="{self._server.address}", token="{self.token}", wait_s={wait_s}, start_s=10'
        return (f"pull={{{said}}}",)

    def stop(self) -> None:
        self._worker.stop()
        self._server.stop()


class Job:
    """A training in `folder`, with `faults`, under torchrun, as it is if `launchers` is None. End it with `close`."""

    def __init__(
        self,
        launchers: Launchers | None,
        folder: Path,
        ranks: int,
        settings: Sequence[str],
        faults: Sequence[Fault] = (),
        restarts: int = 0,
    ) -> None:
        self.folder, self._launchers = folder, launchers
        self.ledger = folder / "ledger"
        self.ledger.mkdir(parents=True, exist_ok=True)
        planted = folder / "planted.json"
        planted.write_text(json.dumps({"ledger": str(self.ledger), "faults": [asdict(fault) for fault in faults]}))
        self.log = folder / "log"
        environment = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), SEEN: str(planted)}
        here = ["--nproc-per-node", ranks, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
        again = ["--max-restarts", restarts, "--monitor-interval", 0.1, "--log-dir", folder / "torchrun"]
        script = ["tests/faults/planted.py", "launch/pretrain.py", "launch/configs/smoke.toml", f"run.dir={folder}"]
        arguments = [str(part) for part in (*here, *again, *script, *TINY, *settings)]
        self._process, self._code = None, None
        if launchers:
            self.pid = launchers.start(arguments, environment, self.log)
        else:
            with self.log.open("w") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "torch.distributed.run", *arguments],
                    cwd=ROOT,
                    env=os.environ | environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self.pid = self._process.pid
        self._family: dict[int, psutil.Process] = {}

    def poll(self) -> int | None:
        """The launcher's exit code, None while it runs."""
        if self._code is None:
            self._code = self._process.poll() if self._process else self._launchers.poll(self.pid)
        return self._code

    def wait(self, deadline_s: float) -> int:
        """The launcher's exit code. AssertionError with the log's end if it does not end in time."""
        return self.until(lambda: self.poll(), deadline_s)

    def until(self, found: Callable[[], Any], deadline_s: float) -> Any:
        """What `found` gives once that is not None."""
        end = time.monotonic() + deadline_s
        while (value := found()) is None:
            self._look()
            assert time.monotonic() < end, f"still running after {deadline_s:.0f} s\n{self.said()[-6000:]}"
            time.sleep(0.05)
        return value

    def _look(self) -> None:
        """Take note of every process of the job: ranks are in sessions of their own, and may outlive the launcher."""
        try:
            root = psutil.Process(self.pid)
            self._family |= {process.pid: process for process in (root, *root.children(recursive=True))}
        except psutil.Error:
            return

    def left(self) -> list[psutil.Process]:
        """What is still running of it."""
        return [process for process in self._family.values() if _alive(process)]

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._look()
        kill(self.left())
        if self._process:
            self._process.wait(5)

    def signal(self, number: signal.Signals) -> None:
        """Send the launcher a signal."""
        os.kill(self.pid, number)

    # What it left.

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def series(self, kind: str = "step") -> list[dict[str, Any]]:
        """The reports of `kind`, each without what the clock and the machine have to do with it."""
        names = {"step", "loss", "rate", "gradient_norm", "applied", "samples", "tokens", "flops"}
        path = self.folder / "metrics" / "train.jsonl"
        return [{k: line[k] for k in names & line.keys()} for line in lines(path) if line["kind"] == kind]

    def done(self) -> int:
        """Steps done, by the metrics."""
        reports = self.series()
        return reports[-1]["step"] if reports else 0

    def told(self) -> list[dict[str, Any]]:
        """The ledger's lines."""
        return [json.loads(line) for path in sorted(self.ledger.iterdir()) for line in path.read_text().splitlines()]

    def struck(self) -> list[dict[str, Any]]:
        """The faults that happened."""
        return [line for line in self.told() if "fault" in line]

    def samples(self) -> dict[int, dict[str, tuple[tuple[str, ...], str]]]:
        """Of each step each unit's sample keys and the digest of what the model was given, of the last time it ran.

        AssertionError if two ranks, or two tries at a step, were given different samples or draws of a unit.
        """
        found: dict[int, dict[str, tuple[tuple[str, ...], str]]] = {}
        for line in self.told():
            if "step" not in line:
                continue
            unit = line["keys"][0].rpartition("/")[0]
            given = (tuple(line["keys"]), line["digest"])
            assert found.setdefault(line["step"], {}).setdefault(unit, given) == given, f"step {line['step']}, {unit}"
        return {step: dict(sorted(units.items())) for step, units in sorted(found.items())}

    def lost(self) -> list[int]:
        """Of each fault that ended a start, the finished steps that the next start had to do again."""
        first: dict[int, int] = {}
        for line in self.told():
            if "step" in line:
                first[line["start"]] = min(line["step"], first.get(line["start"], line["step"]))
        ends = {line["start"]: line["at"] for line in self.struck()}
        return [max(0, at - first[start + 1]) for start, at in sorted(ends.items()) if start + 1 in first]

    def checkpoints(self) -> list[int]:
        """Steps of the published checkpoints, and nothing else may be where they are."""
        root = self.folder / "checkpoints"
        names = sorted(path.name for path in root.iterdir()) if root.exists() else []
        return [int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name))]

    def state(self, step: int) -> dict[str, object]:
        """All of the checkpoint after `step` that may not depend on where and when it was written, byte for byte."""
        path = self.folder / "checkpoints" / f"step-{step:08d}"
        reader = CheckpointReader(path)
        reader.verify(reader.files)
        index = json.loads((path / "index.json").read_text())
        files = {name: path.joinpath(name).read_bytes() for name in reader.files}
        return {"files": files} | {name: index[name] for name in ("step", "updates", "shapes", "pieces")}

    def status(self) -> dict[str, Any]:
        """status.json."""
        return dict(json.loads((self.folder / "status.json").read_text()))


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
