"""The main job on this machine: photographs in, a trained, sampled and exported MMDiT out.

    python launch/smoke.py launch/configs/smoke.toml

Every stage is the real command that a user runs, as a process of its own: corpus, pictures of text, tiny encoders,
curation, producers, training that is killed halfway and resumes, an undisturbed run to compare with, samples, export,
and diffusers opening it. Ends with a table and report.json in the run's folder.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from consumer.metrics import lines
from launch.child import Child, ChildError, MemoryWatch, python, stop, torchrun
from launch.report import write_report
from launch.settings import Settings, command_line, guarded
from producer.cost import CostModel
from producer.index import Index
from producer.plan import Plan

# The least that the validation loss must fall.
MIN_FALL = 0.15

# What the whole takes and holds at most on two cores with nothing beside it; more is said, and no fault of the code.
MAX_S, MAX_BYTES = 360.0, 10e9

# Pictures of text: the source that they are, and how they are made.
SYNTHETIC, SYNTHESIS = "synthetic", "launch/configs/synthesis/smoke.toml"

# The deadline of any one stage.
STAGE_S = 420.0


@dataclass
class Smoke:
    """The run: its settings, what it has measured, and the commands that are alive."""

    settings: Settings
    config: Path
    overrides: list[str]
    report: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    alive: list[Child] = field(default_factory=list)

    @property
    def dir(self) -> Path:
        return self.settings.run.dir

    @property
    def settled(self) -> list[str | Path]:
        """What every command gets: the file, and what was laid over it."""
        return [self.config, *self.overrides]

    def start(self, name: str, command: list[str | Path]) -> Child:
        child = Child(name, command, self.dir / "logs" / f"{name}.log")
        self.alive.append(child)
        return child

    def run(self, name: str, command: list[str | Path]) -> None:
        child = self.start(name, command)
        child.finish(STAGE_S)
        self.alive.remove(child)

    def stop(self) -> None:
        stop(self.alive)
        self.alive.clear()


def main() -> int:
    settings, arguments = command_line(__doc__)
    began, memory = time.monotonic(), MemoryWatch()
    smoke = Smoke(settings, arguments.config, arguments.overrides)
    clear(smoke)
    try:
        for name, stage in STAGES.items():
            print(f"== {name}", flush=True)
            start = time.monotonic()
            stage(smoke)
            smoke.seconds[name] = round(time.monotonic() - start, 1)
            print(f"   {smoke.seconds[name]:.1f} s", flush=True)
    finally:
        smoke.stop()
    names = ("synthesize", "curate", "produce", "train", "paths")
    smoke.report = {name: smoke.report[name] for name in names}
    smoke.report["seconds"] = smoke.seconds | {"all": round(time.monotonic() - began, 1)}
    smoke.report["peak_memory_gb"] = round(memory.peak_bytes / 1e9, 2)
    path = smoke.dir / "report.json"
    write_report(path, smoke.report)
    show(smoke.report, path)
    return judge(smoke.report)


def clear(smoke: Smoke) -> None:
    """Start from nothing, but for the corpus and the encoders, which say themselves whether they are still good."""
    for name in ("index", "cache", "checkpoints", "undisturbed", "metrics", "export", "logs", "curate", "fleet"):
        shutil.rmtree(smoke.dir / name, ignore_errors=True)


def make_data(smoke: Smoke) -> None:
    raw, synthetic = smoke.settings.source.path, smoke.settings.source.also[SYNTHETIC].path
    smoke.run("corpus", python("launch/make_corpus.py", raw, "--lettering", synthetic))


def synthesize(smoke: Smoke) -> None:
    """Pictures of text by all three ways, in scenes before the corpus's photographs; a source of its own."""
    out = smoke.settings.source.also[SYNTHETIC].path
    folders = [f"shards.out={out}", f"compositional.backdrop.folder={smoke.settings.source.path}/backdrops"]
    sheet = smoke.dir / "synthetic.png"
    smoke.run("synthesize", python("launch/synthesize.py", SYNTHESIS, *folders, "--sheet", sheet))


def make_encoders(smoke: Smoke) -> None:
    paths = [smoke.settings.source.path, smoke.settings.source.also[SYNTHETIC].path]
    encoders = smoke.settings.encoder.root
    smoke.run("encoders", python("launch/make_encoders.py", encoders, "--captions", *paths))


def curate(smoke: Smoke) -> None:
    report = smoke.dir / "curate" / "report.json"
    smoke.run("curate", python("launch/curate.py", *smoke.settled, "--report", report))
    smoke.report["curate"] = json.loads(report.read_text())
    table = Index.open(smoke.settings.curate.index).table
    mine = pc.equal(table["source"], SYNTHETIC)
    kept = pc.sum(pc.and_(mine, table["kept"])).as_py()
    smoke.report["synthesize"] = {"made": pc.sum(mine).as_py(), "kept": kept}


def produce(smoke: Smoke) -> None:
    report = smoke.dir / "fleet" / "report.json"
    fleet = smoke.start("produce", python("launch/produce.py", *smoke.settled, "--report", report))
    fleet.until(lambda: any(line.startswith("ready") for line in fleet.lines), 90)


def train(smoke: Smoke) -> None:
    """Train; SIGKILL every rank once the checkpoint halfway is there; start again and finish."""
    half = smoke.settings.checkpoint.every
    job = smoke.start("train", _training(smoke))
    metrics = smoke.dir / "metrics" / "train.jsonl"
    there = smoke.settings.checkpoint.path / f"step-{half:08d}"
    job.until(lambda: _steps(metrics) >= half + 3 and there.exists(), STAGE_S)
    job.kill()
    smoke.alive.remove(job)
    print(f"   killed after step {_steps(metrics)}, checkpoint at {half}", flush=True)
    smoke.run("resume", _training(smoke))


def compare(smoke: Smoke) -> None:
    """The same training without the kill: its losses, to the bit."""
    aside = smoke.dir / "undisturbed"
    smoke.run("undisturbed", _training(smoke, f"checkpoint.path={aside}/checkpoints", f"train.metrics={aside}/metrics"))
    resumed, undisturbed = (_series(path / "train.jsonl") for path in (smoke.dir / "metrics", aside / "metrics"))
    held_out = [line["loss"] for line in lines(smoke.dir / "metrics" / "train.jsonl") if line["kind"] == "validation"]
    waited, seconds = (sum(line[name] for line in undisturbed) for name in ("wait_s", "seconds"))
    images = sum(line["samples"] for line in undisturbed)
    smoke.report["train"] = {
        "steps": len(resumed),
        "validation_loss_first": held_out[0],
        "validation_loss_last": held_out[-1],
        "images_per_s": round(images / seconds, 2),
        "tokens_per_s": round(sum(line["tokens"] for line in undisturbed) / seconds, 1),
        "data_wait_share": round(waited / seconds, 4),
        "resumed_bit_equal": [line["loss"] for line in resumed] == [line["loss"] for line in undisturbed],
    }


def count_trained(smoke: Smoke) -> None:
    """How many of the samples that were trained are pictures of text, by the plan that trainer and workers computed."""
    settings, index = smoke.settings, Index.open(smoke.settings.curate.index)
    plan = Plan(index.id, index.table, settings.recipe, seed=settings.run.seed, cost=CostModel.of(settings.model))
    rows = np.concatenate([unit.rows for step in range(settings.train.steps) for unit in plan.step(step)])
    trained = index.table["source"].take(pa.array(np.unique(rows))).value_counts().to_pylist()
    smoke.report["synthesize"]["trained"] = {one["values"]: one["counts"] for one in trained}.get(SYNTHETIC, 0)


def finish_producing(smoke: Smoke) -> None:
    smoke.stop()
    smoke.report["produce"] = json.loads((smoke.dir / "fleet" / "report.json").read_text())


def sample(smoke: Smoke) -> None:
    smoke.run("sample", python("launch/sample.py", *smoke.settled, "--out", smoke.dir / "grid.png"))


def export(smoke: Smoke) -> None:
    folder = smoke.dir / "export"
    smoke.run("export", python("launch/export.py", *smoke.settled, "--out", folder))
    smoke.run("diffusers", [sys.executable, "-I", "launch/open_export.py", folder, smoke.dir / "diffusers.png"])
    newest = max((smoke.settings.checkpoint.path).glob("step-*"))
    smoke.report["paths"] = {"checkpoint": str(newest), "export": str(folder), "grid": str(smoke.dir / "grid.png")}


STAGES: dict[str, Callable[[Smoke], None]] = {
    "data": make_data,
    "synthesize": synthesize,
    "encoders": make_encoders,
    "curate": curate,
    "produce": produce,
    "train, kill, resume": train,
    "undisturbed run": compare,
    "stop producers": finish_producing,
    "count what was trained": count_trained,
    "sample": sample,
    "export": export,
}


def _training(smoke: Smoke, *overrides: str) -> list[str | Path]:
    return torchrun(smoke.settings.mesh.tp, "launch/pretrain.py", *smoke.settled, *overrides)


def _steps(metrics: Path) -> int:
    return max((line["step"] for line in _series(metrics)), default=0)


def _series(metrics: Path) -> list[dict[str, Any]]:
    return [line for line in lines(metrics) if line["kind"] == "step"]


def show(report: dict[str, Any], path: Path) -> None:
    """The closing table."""
    table = Table("what", "measured")
    for section, values in report.items():
        for name, value in (values if isinstance(values, dict) else {"": values}).items():
            table.add_row(f"{section} {name}".strip(), json.dumps(value) if isinstance(value, dict) else str(value))
    Console().print(table)
    print(f"report: {path}", flush=True)


def judge(report: dict[str, Any]) -> int:
    """0 if the run is what it must be; else ChildError that names each thing that is not."""
    train, first = report["train"], report["train"]["validation_loss_first"]
    fall = 1 - train["validation_loss_last"] / first
    faults = []
    if fall < MIN_FALL:
        faults.append(f"validation loss fell {fall:.1%}, must fall {MIN_FALL:.0%}")
    if not report["synthesize"]["trained"]:
        faults.append("no picture of text was trained")
    if not train["resumed_bit_equal"]:
        faults.append("losses after the resume differ from the undisturbed run's")
    if report["seconds"]["all"] > MAX_S or report["peak_memory_gb"] * 1e9 > MAX_BYTES:
        limits = f"{MAX_S:.0f} s and {MAX_BYTES / 1e9:.0f} GB"
        print(f"more than the {limits} that two idle cores need at most: is something else running?", flush=True)
    if faults:
        raise ChildError("smoke: " + "; ".join(faults))
    return 0


if __name__ == "__main__":
    guarded(main)
