"""The planner: what fits, how long it takes, and every configuration that is shipped."""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launch import planner
from launch.config import ConfigError, load
from launch.dry import dry_mesh, dry_pass, dry_shapes
from launch.estimate import as_json, main, planned, report, size, table
from launch.memory import Memory, States, buffer_elements
from launch.planner import Choice, Estimate, Job, PlannerError, _Grown, estimate, suggest
from launch.settings import Settings
from launch.traffic import Rates
from launch.workload import Unit, unit_samples, workload
from model.config import MMDiTConfig, RecomputeConfig
from parallel.config import OptimConfig
from producer.recipe import RecipeConfig

CONFIGS = sorted((Path(__file__).parents[3] / "launch" / "configs").glob("*.toml"))
SIZES = MMDiTConfig(
    num_layers=8,
    attention_head_dim=32,
    num_attention_heads=8,
    joint_attention_dim=64,
    axes_dims_rope=(8, 12, 12),
    blocks_per_gather=4,
)


def job(gpus: int = 8, memory: int = 10**9, sizes: MMDiTConfig = SIZES, **recipe: object) -> Job:
    return Job(sizes, RecipeConfig(**{"units": 16, "samples": 4} | recipe), OptimConfig(), gpus, memory, 64, 0, Rates())


def settings_of(path: Path, *overrides: str) -> Settings:
    return load(Settings, path, ["run.dir=runs/x", "source.path=x", *overrides])


def judged(path: Path, gpus: int, memory: str, *overrides: str) -> Estimate:
    arguments = argparse.Namespace(gpus=gpus, memory=size(memory), text=256, reserve=size("2.5GB"), device="cuda")
    arguments.__dict__.update({"tflops": 989.0, "efficiency": 0.6, "hbm_tbs": 3.35, "intra_gbs": 370.0})
    arguments.__dict__.update({"inter_gbs": 40.0, "node": 8})
    return estimate(*planned(settings_of(path, *overrides), arguments))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_and_is_estimated(path: Path) -> None:
    one = judged(path, 64 if "pretrain" in path.stem else 2, "80GB")
    # The claim of the pretraining files' first lines.
    assert one.margin > 0
    assert one.time.total > 0 and 0 < one.mfu < 0.6
    assert "fits" in "\n".join(report(one))


def test_the_released_model_fits_eight_cards_as_its_configurations_say() -> None:
    path = CONFIGS[0].with_name("pretrain-256p.toml")
    assert judged(path, 8, "80GB", "mesh.tp=8").margin > 0
    assert judged(path, 8, "141GB", "mesh.tp=2", "recipe.samples=8", "recipe.units=4096").margin > 0
    last = path.with_name("pretrain-1328p.toml")
    assert not judged(last, 8, "141GB", "mesh.tp=2", 'recompute.parts=["norm", "gelu"]').tight
    without = judged(path, 8, "80GB")
    assert without.margin < 0
    # 20.4 billion parameters on 4 x 2 ranks: bf16 weights, fp32 gradients, and half of 16 bytes each.
    assert without.states.device == pytest.approx(20.43e9 / 4 * (2 + 4 + 16 / 2), rel=0.01)


def test_a_thousand_ranks_are_planned_in_seconds() -> None:
    start = time.process_time()
    one = judged(CONFIGS[0].with_name("pretrain-1328p.toml"), 1024, "80GB")
    assert time.process_time() - start < 60  # the limit with two cores; some seconds are usual
    assert one.dp == 256 and one.margin > 0


def test_layouts_that_fit_come_fastest_first_and_the_others_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "LADDER", ((), ("norm", "gelu", "core")))
    shallow = SIZES.model_copy(update={"num_layers": 3})
    alone = estimate(job(2, sizes=shallow), Choice(1, False, RecomputeConfig(), 1))
    fitting, refused = suggest(job(2, alone.states.device + alone.memory.parts["activations"] // 2, shallow))
    assert fitting and refused
    ranked = [(one.tight, one.time.total / one.flops) for one in fitting]
    assert ranked == sorted(ranked)
    assert all(one.margin >= 0 for one in fitting)
    # The same pictures a step in all of them.
    assert {one.work.samples for one in fitting} == {64}
    assert any(one.choice.recompute.parts for one in fitting)
    assert refused[0].choice == Choice(1, False, RecomputeConfig(), 1) and "GB of" in refused[0].reason
    lines = table(fitting, refused)
    assert len(lines) == 3 + len(fitting) + len(refused)


@pytest.mark.parametrize("parts", [(), ("norm", "gelu"), ("block",)])
def test_a_pass_grown_from_few_blocks_is_the_pass_of_all(parts: tuple[str, ...]) -> None:
    one, choice = job(), Choice(2, True, RecomputeConfig(parts=parts), 4)  # type: ignore[arg-type]
    unit = Unit(256, (((16, 16), 300), *(((16, 16), 64),) * 5))
    with dry_mesh(2, True) as mesh:
        grown = _Grown(one, choice, mesh).at(unit)
        whole = dry_pass(SIZES, mesh, one.optim.dtype, unit.samples, "cuda", recompute=choice.recompute)
    assert grown.peak == pytest.approx(whole.peak, rel=0.02)
    assert grown.flops == pytest.approx(whole.flops, rel=0.001)
    assert sum(grown.kept.values()) == pytest.approx(sum(whole.kept.values()), rel=0.01)
    assert sum(grown.traffic.values()) == pytest.approx(sum(whole.traffic.values()), rel=0.001)


def test_more_ranks_hold_less_each_and_overlap_hides_traffic() -> None:
    with dry_mesh(1, False) as mesh:
        shapes = dry_shapes(SIZES, mesh, OptimConfig().dtype)
    two, eight = (States.of(shapes, OptimConfig(), dp) for dp in (2, 8))
    assert eight.optimizer * 4 == pytest.approx(two.optimizer, rel=0.001)
    assert eight.weights == pytest.approx(two.weights, rel=0.001)
    # Many buckets, and a network that takes longer than the backward.
    slow = replace(job(), rates=Rates(intra_gbs=50), optim=OptimConfig(bucket_elements=100_000))
    bare = replace(slow, optim=OptimConfig(overlap_grads=False, overlap_params=False))
    choice = Choice(1, False, RecomputeConfig(), 4)
    hidden, exposed = (estimate(one, choice).time for one in (slow, bare))
    assert exposed.gradients == pytest.approx(hidden.gradients + hidden.products / 2 * 2 / 3, rel=0.01)
    assert exposed.total > hidden.total


def test_a_buffer_is_padded_as_megatron_pads_it() -> None:
    # From the end: 100 and 70 from element 128 on; both reach 150, so a bucket ends at 384, shared by 3 ranks of 128.
    assert buffer_elements([10, 70, 100], 3, 150) == 384 + 384
    assert buffer_elements([10, 70, 100], 3, None) == 384


def test_a_unit_holds_what_costs_the_same() -> None:
    recipe = RecipeConfig(resolutions=(640, 1328), units=8, samples=8)
    assert unit_samples(recipe, MMDiTConfig(), 256) == {640: 8, 1328: 2}
    work = workload(recipe, MMDiTConfig(), 256)
    assert work.samples == 8 * 5 and work.worst.samples[0][1] == recipe.max_text_tokens
    assert work.worst.tokens == max(unit.tokens for unit in (*work.typical, work.worst))


@pytest.mark.parametrize(
    ("choice", "gpus", "said"),
    [
        (Choice(3, False, RecomputeConfig(), 4), 6, "mesh.tp: 3 does not divide num_heads 8"),
        (Choice(1, False, RecomputeConfig(), 4), 5, "cannot share 16 units"),
        (Choice(4, False, RecomputeConfig(), 4), 6, "6"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(choice: Choice, gpus: int, said: str) -> None:
    with pytest.raises(PlannerError, match=said):
        estimate(job(gpus), choice)


def test_sizes_are_read_with_their_units() -> None:
    assert size("80GB") == 80 * 10**9 and size("79 GiB") == 79 * 2**30 and size("1.5MB") == 1_500_000
    with pytest.raises(ConfigError, match="80GB"):
        size("eighty")


def test_the_command_prints_its_estimate_for_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = str(CONFIGS[0].with_name("smoke.toml"))
    monkeypatch.setattr(sys, "argv", ["estimate.py", tiny, "--gpus", "2", "--memory", "1GB", "--json"])
    assert main() == 1  # the reserve alone is more
    said = json.loads(capsys.readouterr().out)["estimate"]
    assert said["fits"] is False and said["memory_total"] == sum(said["memory"].values())
    assert said["margin"] == 10**9 - said["memory_total"]
    assert as_json(judged(Path(tiny), 2, "80GB"))["fits"] is True


def test_memory_names_every_part() -> None:
    with dry_mesh(1, False) as mesh:
        step = dry_pass(SIZES, mesh, OptimConfig().dtype, [((4, 4), 9)], "cuda")
    parts = Memory.of(States(1, 2, 3, 4, 5, 6, 7), step, "cuda", 100).parts
    assert [parts[name] for name in ("weights", "gradients", "optimizer", "EMA")] == [1, 2, 3, 4]
    assert parts["CUDA, cuBLAS, NCCL"] == 100 and parts["activations"] > 0
    held = ("activations", "gathered modulation", "gathered tokens", "backward's working set")
    assert sum(parts[name] for name in held) == step.peak
