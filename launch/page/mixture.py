"""What the recipe means to train on, and what the plan, or a run, makes of it."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from consumer.metrics import lines
from launch.page.rows import Rows
from launch.settings import Settings
from producer.cost import CostModel
from producer.entry import Entry
from producer.index import schema
from producer.plan import Plan
from producer.recipe import T2I, RecipeError

# Steps of the plan that are counted, at most.
_STEPS = 200
# The plan holds a row of some hundred bytes for every sample in memory; beyond so many this is left to training.
_ROWS = 20_000_000


def mixture(rows: Rows, settings: Settings, metrics: Path | None) -> dict[str, Any]:
    """Shares of samples by stream and by bucket, planned and actual, as JSON values; or "why" there are none."""
    if rows.said["rows"] > _ROWS:
        return {"why": f"{rows.said['rows']:,} rows are more than the {_ROWS:,} that are planned for a page"}
    try:
        plan = _plan(rows, settings)
    except RecipeError as error:
        return {"why": f"the recipe does not fit this generation: {error}"}
    entry = plan.entry(0)
    steps = min(settings.train.steps, _STEPS)
    streams, buckets = _planned(entry, settings)
    made_streams, made_buckets = _made(plan, entry, steps)
    said = f"the plan's first {steps} steps"
    if metrics is not None:
        made_buckets, trained = _trained(metrics)
        said = f"{said}; by bucket {trained} steps of {metrics}"
    return {
        "actual": said,
        "streams": _beside(streams, made_streams),
        "buckets": _beside(buckets, made_buckets),
        "selection": plan.selection.counts,
        "held_out": int(plan.selection.held_out.sum()),
    }


def _plan(rows: Rows, settings: Settings) -> Plan:
    """Over the columns that plans are made from: of captions all but their words."""
    words = [f"captions.list.element.{name}" for name in ("split", "tokens", "kept", "reason")]
    known = schema(rows.operators)
    bounded = [name for name in (f"score.{one}" for one in settings.recipe.thresholds) if name in known.names]
    leaves = [f"{name}.list.element" if pa.types.is_list(known.field(name).type) else name for name in bounded]
    table = rows.read(["key", "kept", "height", "width", "cluster", "references", *words, *leaves])
    cost = CostModel.of(settings.model)
    return Plan(rows.said["id"], table, settings.recipe, seed=settings.run.seed, cost=cost)


def _stream(split: str, task: str) -> str:
    return split if task == T2I else f"{split}, {task}"


def _planned(entry: Entry, settings: Settings) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of samples: a stream's by the recipe's weights, a bucket's by its rows in each stream."""
    recipe = settings.recipe
    weights = {(s, t): w * v for s, w in recipe.splits.items() for t, v in recipe.tasks.items()}
    whole = sum(weights.values())
    streams = {_stream(*name): weight / whole for name, weight in weights.items()}
    rows: Counter[tuple[str, str]] = Counter()
    for group, size in zip(entry.groups, entry.sizes.tolist(), strict=True):
        rows[group.split, group.task] += size
    planned = sum(weights[name] for name in rows)
    buckets: Counter[str] = Counter()
    for group, size in zip(entry.groups, entry.sizes.tolist(), strict=True):
        name = group.split, group.task
        buckets[str(group.bucket)] += weights[name] / planned * size / rows[name]
    return streams, dict(buckets)


def _made(plan: Plan, entry: Entry, steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of the samples of the first `steps` steps."""
    samples = np.zeros(len(entry.groups), np.int64)
    for step in range(steps):
        dealt = entry.deal(step)
        np.add.at(samples, dealt.groups, np.diff(dealt.starts))
    streams: Counter[str] = Counter()
    buckets: Counter[str] = Counter()
    for group, count in zip(entry.groups, samples.tolist(), strict=True):
        streams[_stream(group.split, group.task)] += count
        buckets[str(group.bucket)] += count
    return _shares(streams), _shares(buckets)


def _trained(metrics: Path) -> tuple[dict[str, float], int]:
    """Shares of the samples that a run trained on by bucket, and how many steps that were."""
    file = metrics / "train.jsonl" if metrics.is_dir() else metrics
    if not file.is_file():
        raise FileNotFoundError(2, "no metrics of a training there", str(file))
    buckets: Counter[str] = Counter()
    steps = 0
    for line in lines(file):
        parts = line.get("loss_by_bucket") or {}
        steps += bool(parts)
        for name, part in parts.items():
            buckets[name] += part[1]
    return _shares(buckets), steps


def _shares(counts: Counter[str]) -> dict[str, float]:
    whole = sum(counts.values())
    return {name: count / whole for name, count in counts.items()} if whole else {}


def _beside(planned: dict[str, float], actual: dict[str, float]) -> list[dict[str, Any]]:
    names = sorted(planned.keys() | actual.keys(), key=lambda name: -planned.get(name, 0.0))
    return [{"name": name, "planned": planned.get(name, 0.0), "actual": actual.get(name, 0.0)} for name in names]
