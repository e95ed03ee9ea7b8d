"""A step's totals are exact, told apart by noise level and bucket, and gathered without waiting for the device."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from consumer.objective.flow import FlowObjective
from consumer.phases import Phases
from consumer.stats import LEVELS, Stats, peak_memory
from model.config import FlowConfig
from model.flow import draw
from model.layout import Layout
from parallel.mesh import Mesh
from producer.api.unit import Encoded, Latent
from tests.distributed import tiny

SIZES = [(32, 48), (48, 32), (32, 32)]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    here = tiny.mesh(1, False)
    yield here
    here.close()


def objective() -> FlowObjective:
    config = FlowConfig(density="uniform", prompt_dropout=0.5)
    return FlowObjective(
        config, seed=5, mean=torch.zeros(4), std=torch.ones(4), empty=torch.zeros(2, 8), axes=(8, 4, 4)
    )


def unit(number: int, count: int) -> list[Encoded]:
    """`count` samples of one bucket; the first two buckets have as many tokens as each other."""
    height, width = SIZES[number % len(SIZES)]
    rng = np.random.default_rng(number)
    planes = rng.normal(size=(count, 2, 4, height // 8, width // 8)).astype("float16")
    text = np.zeros((3, 8), "uint16")
    return [
        Encoded(f"{number}-{k}", "s", "shard", "t2i", "raw", "", Latent(height, width, *planes[k]), text)
        for k in range(count)
    ]


def model(image: Tensor, text: Tensor, sigma: Tensor, layout: Layout) -> Tensor:
    return 0.3 * image


def trained(stats: Stats, units: list[list[Encoded]]) -> list[tuple[float, float, tuple[int, int]]]:
    """Every sample's loss, noise level and size, which `stats` was told as well."""
    flow, seen = objective(), []
    stats.start()
    for samples in units:
        batch = flow.batch(samples, 0, torch.device("cpu"), torch.float32)
        _, each = flow.loss(model, batch)
        stats.add(batch, each, 10.0 * len(samples), 12.0 * len(samples))
        seen += list(zip(each.tolist(), batch.sigma.tolist(), batch.sizes, strict=False))
    return seen[: sum(map(len, units))]


def test_totals_are_the_sums_over_samples_told_apart_by_level_and_bucket(mesh: Mesh) -> None:
    stats = Stats(mesh, SIZES)
    seen = trained(stats, [unit(k, 1 + k % 4) for k in range(9)])
    vector = stats.reduced()
    assert vector.dtype == torch.float64 and vector.shape == (stats.width,)
    totals = stats.read([*vector.tolist(), math.nan])  # what follows is not read
    assert totals.samples == len(seen) and totals.tokens == sum(h * w // 256 for _, _, (h, w) in seen) + sum(
        2 if dropped else 3 for dropped in drops(seen)
    )
    assert totals.flops == 10.0 * len(seen) and totals.executed == 12.0 * len(seen)
    assert totals.loss == pytest.approx(math.fsum(loss for loss, *_ in seen), rel=1e-14)
    assert totals.mean == totals.loss / totals.samples
    wanted: dict[str, list[float]] = {}
    for loss, _, (height, width) in seen:
        wanted.setdefault(f"{height}x{width}", []).append(loss)
    assert {name: part.samples for name, part in totals.loss_by_bucket.items()} == {
        k: len(v) for k, v in wanted.items()
    }
    for name, losses in wanted.items():
        mean = pytest.approx(math.fsum(losses) / len(losses), rel=1e-14)
        assert totals.loss_by_bucket[name] == (mean, len(losses))
    levels = {int(sigma * LEVELS) for _, sigma, _ in seen}
    assert set(totals.loss_by_level) == {f"{k / 10:.1f}-{(k + 1) / 10:.1f}" for k in levels}
    for k in levels:
        losses = [loss for loss, sigma, _ in seen if int(sigma * LEVELS) == k]
        part = totals.loss_by_level[f"{k / 10:.1f}-{(k + 1) / 10:.1f}"]
        assert part == (pytest.approx(math.fsum(losses) / len(losses), rel=1e-14), len(losses))


def drops(seen: list[Any]) -> list[bool]:
    """Whether each sample's prompt was dropped, drawn again."""
    keys = [sample.key for k in range(9) for sample in unit(k, 1 + k % 4)]
    shapes = [(4, height // 8, width // 8) for *_, (height, width) in seen]
    return [draw(objective().config, shape, 5, 0, key).dropped for key, shape in zip(keys, shapes, strict=True)]


def test_the_next_step_starts_from_nothing(mesh: Mesh) -> None:
    stats = Stats(mesh, SIZES)
    trained(stats, [unit(0, 3)])
    stats.reduced()
    seen = trained(stats, [unit(1, 2)])
    totals = stats.read(stats.reduced().tolist())
    assert totals.samples == 2 and totals.loss == pytest.approx(sum(loss for loss, *_ in seen))
    assert set(totals.loss_by_bucket) == {"48x32"}


@pytest.mark.parametrize("units", [[], [[]]])
def test_a_step_without_samples_has_a_loss_of_nothing(mesh: Mesh, units: list[list[Encoded]]) -> None:
    stats = Stats(mesh, SIZES)
    trained(stats, units)
    totals = stats.read(stats.reduced().tolist())
    assert (totals.loss, totals.mean, totals.samples, totals.tokens) == (0, 0, 0, 0)
    assert not totals.loss_by_level and not totals.loss_by_bucket


def test_a_loss_that_is_no_number_shows_in_its_own_level_and_bucket_alone(mesh: Mesh) -> None:
    stats, flow = Stats(mesh, SIZES), objective()
    for number, bad in ((0, False), (1, True)):
        batch = flow.batch(unit(number, 1), 0, torch.device("cpu"), torch.float32)
        _, each = flow.loss(model, batch)
        batch.sigma.fill_(0.05 if bad else 1.0)
        stats.add(batch, each * math.nan if bad else each, 1.0)
    totals = stats.read(stats.reduced().tolist())
    assert math.isnan(totals.loss) and totals.samples == 2
    assert math.isnan(totals.loss_by_level["0.0-0.1"].loss) and math.isfinite(totals.loss_by_level["0.9-1.0"].loss)
    assert math.isnan(totals.loss_by_bucket["48x32"].loss) and math.isfinite(totals.loss_by_bucket["32x48"].loss)


class Waits(TorchDispatchMode):
    """Counts operators and what reads a tensor's values on the host, which waits for a device."""

    READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.reads, self.operators = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        self.reads += any(func.name().startswith(f"aten::{name}") for name in self.READS)
        return func(*args, **kwargs or {})


def test_nothing_waits_for_the_device_and_a_unit_costs_no_operator(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    flow, stats = objective(), Stats(mesh, SIZES)
    batches = [flow.batch(unit(k, 2), 0, torch.device("cpu"), torch.float32) for k in range(8)]
    losses = [flow.loss(model, batch)[1] for batch in batches]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was read on the host")

    with Waits() as control:
        float(losses[0][0])
    assert control.reads == 1
    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(Tensor, name, refuse)
    with Waits() as adding:
        stats.start()
        for batch, each in zip(batches, losses, strict=True):
            stats.add(batch, each, 1.0)
    with Waits() as reducing:
        vector = stats.reduced()
    monkeypatch.undo()
    assert adding.operators == 0
    assert reducing.reads == 0 and reducing.operators < 60
    assert stats.read(vector.tolist()).samples == 16


def test_phases_sum_up_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 3.0, 3.5, 6.0, 6.25, 9.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    phases = Phases(torch.device("cpu"))
    for name in ("data", "forward", "data", "forward", "optimizer"):
        phases.enter(name)
    phases.end()
    assert phases.seconds() == {"data": 4.5, "forward": 0.75, "optimizer": 2.75}
    phases.start()
    assert phases.seconds() == {}


def test_memory_on_the_cpu_is_the_size_of_the_process() -> None:
    assert 50e6 < peak_memory(torch.device("cpu")) < 64e9
