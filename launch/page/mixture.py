"""What the recipe means to train on, and what the plan, or a run, makes of it."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from consumer.metrics import lines
from launch.page.rows import Rows
from launch.settings import Settings
from producer.classes import ClassError
from producer.cost import CostModel
from producer.entry import Group
from producer.index import schema
from producer.plan import Plan
from producer.recipe import T2I, RecipeConfig, RecipeError

# Steps of the plan that are counted, at most.
_STEPS = 200
# The plan holds a row of some hundred bytes for every sample in memory; beyond so many this is left to training.
_ROWS = 20_000_000

STREAM, BUCKET = "caption split", "bucket"


def mixture(rows: Rows, settings: Settings, metrics: Path | None) -> dict[str, Any]:
    """Shares of samples by stream, class and bucket, planned and actual, as JSON values; or "why" there are none."""
    if rows.said["rows"] > _ROWS:
        return {"why": f"{rows.said['rows']:,} rows are more than the {_ROWS:,} that are planned for a page"}
    try:
        plan = _plan(rows, settings)
    except (RecipeError, ClassError) as error:
        return {"why": f"the recipe does not fit this generation: {error}"}
    steps = min(settings.train.steps, _STEPS)
    planned, actual = _planned(plan, settings.recipe), _made(plan, settings.recipe, steps)
    said = f"the plan's first {steps} steps"
    if metrics is not None:
        actual[BUCKET], trained = _trained(metrics)
        said = f"{said}; by bucket {trained} steps of {metrics}"
    return {
        "actual": said,
        "tables": [{"name": name, "rows": _beside(planned[name], actual[name])} for name in planned],
        "selection": plan.selection.counts,
    }


def _plan(rows: Rows, settings: Settings) -> Plan:
    """Over the columns that plans are made from: of captions all but their words."""
    recipe = settings.recipe
    words = [f"captions.list.element.{name}" for name in ("split", "tokens", "kept", "reason")]
    known = schema(rows.operators)
    wanted = [*(f"score.{one}" for one in recipe.thresholds), *(f"tag.{one}" for one in recipe.classes)]
    there = [name for name in wanted if name in known.names]
    leaves = [f"{name}.list.element" if pa.types.is_list(known.field(name).type) else name for name in there]
    table = rows.read(["key", "source", "kept", "height", "width", "cluster", "references", *words, *leaves])
    cost = CostModel.of(settings.model)
    return Plan(rows.said["id"], table, recipe, seed=settings.run.seed, cost=cost)


def _planned(plan: Plan, recipe: RecipeConfig) -> dict[str, dict[str, float]]:
    """By what they are shares of: the recipe's weights, and for buckets the rows that each has in every stream."""
    weights = {(s, t): w * v for s, w in recipe.splits.items() for t, v in recipe.tasks.items()}
    said = {STREAM: _shares({_stream(*name): weight for name, weight in weights.items()})}
    said |= {tag: _shares(values) for tag, values in sorted(recipe.classes.items())}
    entry, classes = plan.entry(0), plan.selection.classes
    of_class: dict[tuple[str, ...], float] = (
        {(): 1.0} if classes is None else dict(zip(classes.names, classes.weight.tolist(), strict=True))
    )
    held = list(zip(entry.groups, entry.sizes.tolist(), strict=True))
    rows: Counter[tuple[str, str, tuple[str, ...]]] = Counter()
    for group, size in held:
        rows[_key(group)] += size
    buckets: dict[str, float] = {}
    for group, size in held:
        weight = weights[group.split, group.task] * of_class[group.kind]
        buckets[str(group.bucket)] = buckets.get(str(group.bucket), 0.0) + weight * size / rows[_key(group)]
    return said | {BUCKET: _shares(buckets)}


def _made(plan: Plan, recipe: RecipeConfig, steps: int) -> dict[str, dict[str, float]]:
    """By the same: the samples of the first `steps` steps."""
    entry = plan.entry(0)
    samples = np.zeros(len(entry.groups), np.int64)
    for step in range(steps):
        dealt = entry.deal(step)
        np.add.at(samples, dealt.groups, np.diff(dealt.starts))
    classes = _values(plan, recipe)
    counts: dict[str, Counter[str]] = {}
    for group, count in zip(entry.groups, samples.tolist(), strict=True):
        names = {STREAM: _stream(group.split, group.task), BUCKET: str(group.bucket), **classes[group.kind]}
        for kind, name in names.items():
            counts.setdefault(kind, Counter())[name] += count
    return {kind: _shares(count) for kind, count in counts.items()}


def _values(plan: Plan, recipe: RecipeConfig) -> dict[tuple[str, ...], dict[str, str]]:
    """The value of each tag by the class's name."""
    found = plan.selection.classes
    if found is None:
        return {(): {}}
    tags = [(tag, sorted(recipe.classes[tag])) for tag in sorted(recipe.classes)]
    each = [{tag: values[number] for (tag, values), number in zip(tags, of, strict=True)} for of in found.value.T]
    return dict(zip(found.names, each, strict=True))


def _key(group: Group) -> tuple[str, str, tuple[str, ...]]:
    return group.split, group.task, group.kind


def _stream(split: str, task: str) -> str:
    return split if task == T2I else f"{split}, {task}"


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
        for name, (_, count) in parts.items():
            buckets[name] += count
    return _shares(buckets), steps


def _shares(parts: Mapping[str, float]) -> dict[str, float]:
    whole = sum(parts.values())
    return {name: part / whole for name, part in parts.items()} if whole else {}


def _beside(planned: dict[str, float], actual: dict[str, float]) -> list[dict[str, Any]]:
    names = sorted(planned.keys() | actual.keys(), key=lambda name: -planned.get(name, 0.0))
    return [{"name": name, "planned": planned.get(name, 0.0), "actual": actual.get(name, 0.0)} for name in names]
