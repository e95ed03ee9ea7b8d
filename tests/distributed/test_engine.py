"""Training on many ranks is training on one: the same losses, norms and weights, step for step."""

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.init import seed_of
from model.mmdit import MMDiT
from parallel.engine import Engine
from parallel.shard import Shard
from tests.distributed import tiny
from tests.distributed.ranks import Ranks

STEPS = 5  # optimizer steps
LR, DECAY, CLIP = 3e-3, 0.1, 1.0
# Large: Adam would turn the rounding of gradients that are zero in truth (biases of keys) into steps of full length.
EPS = 1e-3


def train_on_rank(folder: str, tp: int, sp: bool, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each of `runs` (precision, overlap): losses, norms, and this rank's owned weights in a file of its own."""
    path, here = Path(folder), tiny.mesh(tp, sp)
    results = []
    for number, run in enumerate(runs):
        engine = tiny.build(
            path / "weights.safetensors", here, tiny.optim(**run, clip=CLIP, weight_decay=DECAY, eps=EPS)
        )
        steps = [(*tiny.backward(engine, step), *engine.step(LR)) for step in range(STEPS)]
        owned = {f"{s.name}/{s.start}": s.tensors["param"].float().clone() for s in engine.shards() if s.owned}
        save_file(owned, path / f"{here.world}-{tp}-{sp}-{number}-{here.rank}.safetensors")
        places = [[s.name, s.place, s.start, s.stop] for s in engine.shards() if s.owned]
        whole = [s for s in engine.shards() if s.place is None]
        results.append({"steps": steps, "places": places, "copies": bits(whole)})
    here.close()
    return results


def bits(shards: list[Shard]) -> str:
    """A hash of all that `shards` hold."""
    digest = hashlib.sha256()
    for shard in shards:
        for kind, tensor in sorted(shard.tensors.items()):
            digest.update(f"{shard.name} {shard.start} {kind}".encode())
            digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()


def weights(folder: Path, layout: tuple[int, int, bool], number: int, results: list[Any]) -> dict[str, torch.Tensor]:
    """Whole weights from what every rank owned, each element owned once."""
    world, tp, sp = layout
    found = {name: torch.full(t.shape, math.nan) for name, t in load_file(folder / "weights.safetensors").items()}
    for rank in range(world):
        tensors = load_file(folder / f"{world}-{tp}-{sp}-{number}-{rank}.safetensors")
        for name, place, start, stop in results[rank][number]["places"]:
            whole = found[name]
            part = whole if place is None else whole.narrow(place[0], place[1], place[2] - place[1])
            flat = part.reshape(-1).clone()
            assert flat[start:stop].isnan().all(), f"{name}: owned twice"
            flat[start:stop] = tensors[f"{name}/{start}"]
            part.copy_(flat.view(part.shape))
    assert not any(tensor.isnan().any() for tensor in found.values())
    return found


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the initial weights."""
    folder = tmp_path_factory.mktemp("engine")
    initial = {}
    for name, parameter in MMDiT(tiny.CONFIG).named_parameters():
        generator = torch.Generator().manual_seed(seed_of("engine", name))
        noise = torch.randn(parameter.shape, generator=generator)
        initial[name] = 1 + 0.1 * noise if name.endswith(("norm.weight", "_q.weight", "_k.weight")) else 0.1 * noise
    save_file(initial, folder / "weights.safetensors")
    return folder


def plain(folder: Path) -> tuple[list[tuple[float, int, float]], dict[str, torch.Tensor]]:
    """The same training by torch alone: steps of (loss, samples, gradient norm), and the weights after."""
    model = MMDiT(tiny.CONFIG)
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": DECAY},
            {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=LR,
        betas=(0.9, 0.95),
        eps=EPS,
    )
    idle = model.transformer_blocks[-1].txt_mod[1].weight
    rows = idle.detach()[2 * tiny.CONFIG.width :].clone()
    steps = []
    for step in range(STEPS):
        optimizer.zero_grad()
        losses, counts = zip(*(tiny.unit_loss(model, step, unit) for unit in range(tiny.UNITS)), strict=True)
        loss = torch.stack(losses).sum() / sum(counts)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        with torch.no_grad():
            idle[2 * tiny.CONFIG.width :] = rows  # never trained, so never decayed
        steps.append((loss.item(), sum(counts), norm.item()))
    return steps, {name: p.detach() for name, p in model.named_parameters()}


RUNS = [
    {"precision": "fp32", "overlap": False},
    {"precision": "fp32", "overlap": True},
    {"precision": "bf16", "overlap": False},
    {"precision": "bf16", "overlap": True},
]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Between two sets of weights, as one vector each."""
    return math.sqrt(sum((tensor - other[name]).square().sum().item() for name, tensor in one.items()))


def test_every_layout_trains_as_torch_does_on_one_device(ranks: Ranks, start: Path) -> None:
    initial = load_file(start / "weights.safetensors")
    wanted, after = plain(start)
    single: dict[int, Any] = {}
    for layout in [(1, 1, False), (4, 2, False), (4, 2, True)]:
        world, tp, sp = layout
        results = ranks.run(world, train_on_rank, folder=start, tp=tp, sp=sp, runs=RUNS)
        for number, run in enumerate(RUNS):
            found, steps = weights(start, layout, number, results), results[0][number]["steps"]
            reference, close = (wanted, after), 1e-5
            if run["precision"] == "bf16":
                # bf16 rounds the timestep, so it is another function: one rank's bf16 is the reference of many.
                reference, close = single.setdefault(number, (steps, found)), 3e-2
            for (loss, count, norm, applied), (want, samples, length, *_) in zip(steps, reference[0], strict=True):
                assert applied and count == samples
                assert loss == pytest.approx(want, rel=close), (layout, run)
                # Roundings of bf16 grow from step to step, in the gradients first.
                assert norm == pytest.approx(length, rel=close if close < 1e-3 else 2 * close), (layout, run)
            assert distance(found, reference[1]) <= 4 * close * distance(initial, reference[1]), (layout, run)
            # Ranks of a tensor-parallel group hold the same bits of what is not split, and all saw the same steps.
            copies = [results[rank][number]["copies"] for rank in range(world)]
            assert all(copy == copies[rank // tp * tp] for rank, copy in enumerate(copies))
            assert all(result[number]["steps"] == steps for result in results)
        for one, other in ((0, 1), (2, 3)):  # without and with overlap
            for left, right in zip(results[0][one]["steps"], results[0][other]["steps"], strict=True):
                assert left == pytest.approx(right, rel=1e-5 if one == 0 else 1e-3)


def never_trained_on_rank(folder: str, tp: int) -> list[str]:
    """Names of the weights, or rows of them, that training for some steps left as they were."""
    here = tiny.mesh(tp, False)
    engine = tiny.build(Path(folder) / "weights.safetensors", here, tiny.optim(weight_decay=DECAY))
    before = [(s, s.tensors["param"].clone()) for s in engine.shards()]
    for step in range(2):
        tiny.backward(engine, step)
        engine.step(LR)
    same = []
    for shard, old in before:
        kept = old == shard.tensors["param"]
        if kept.all():
            same.append(shard.name)
        elif shard.name == "transformer_blocks.2.txt_mod.1.weight":
            first = (shard.place.start if shard.place else 0) * shard.local[1] + shard.start
            row = 2 * tiny.CONFIG.width * shard.local[1]  # the first idle element of the whole
            at = torch.arange(first, first + len(kept))
            assert kept[at >= row].all() and not kept[at < row].any()
            same.append("idle rows")
    here.close()
    return same


def test_weights_that_nothing_reads_stay_as_they_are_under_decay(ranks: Ranks, start: Path) -> None:
    results = ranks.run(4, never_trained_on_rank, folder=start, tp=2)
    block = "transformer_blocks.2."
    idle = [
        f"{block}{layer}.{part}"
        for layer in ("attn.to_add_out", "attn.add_q_proj", "txt_mlp.net.0.proj", "txt_mlp.net.2")
        for part in ("weight", "bias")
    ]
    idle += [f"{block}attn.norm_added_q.weight"]
    for same in results:
        assert set(same) - {"idle rows", f"{block}txt_mod.1.weight", f"{block}txt_mod.1.bias"} == set(idle)
    assert any("idle rows" in same for same in results)


def bad_gradient_on_rank(folder: str, tp: int) -> dict[str, Any]:
    """One step whose gradient is not finite on one rank alone, then good ones; and the good ones without it."""
    here = tiny.mesh(tp, False)
    series = {}
    for kind in ("clean", "bad"):
        engine = tiny.build(Path(folder) / "weights.safetensors", here, tiny.optim("bf16"))
        if kind == "bad":
            before = bits(list(engine.shards()))
            engine.zero_grad()
            loss, _ = tiny.unit_loss(engine.module, 9, here.dp_rank)
            (loss * (math.inf if here.rank == 3 else 1.0)).backward()
            engine.finish(1)
            norm, applied = engine.step(LR)
            assert not applied and not math.isfinite(norm) and engine.updates == 0
            assert bits(list(engine.shards())) == before
        steps = [(tiny.backward(engine, step)[0], *engine.step(LR)) for step in range(2)]
        series[kind] = [steps, bits(list(engine.shards())), engine.updates]
    here.close()
    return series


def test_a_gradient_that_is_not_finite_anywhere_changes_nothing_anywhere(ranks: Ranks, start: Path) -> None:
    for series in ranks.run(4, bad_gradient_on_rank, folder=start, tp=2):
        assert series["bad"] == series["clean"]
        assert series["bad"][2] == 2


def repeat_on_rank(folder: str) -> list[str]:
    """What four trainings with every overlap leave on this rank."""
    here = tiny.mesh(1, False)
    ends = []
    for _ in range(4):
        engine: Engine = tiny.build(
            Path(folder) / "weights.safetensors", here, tiny.optim("bf16", bucket_elements=3000)
        )
        for step in range(2):
            tiny.backward(engine, step)
            engine.step(LR)
            with torch.no_grad():  # a forward without a backward gathers parameters too
                tiny.unit_loss(engine.module, step, 0)
        ends.append(bits(list(engine.shards())))
    here.close()
    return ends


def test_overlapped_gathers_and_reductions_give_the_same_bits_each_time(ranks: Ranks, start: Path) -> None:
    for ends in ranks.run(4, repeat_on_rank, folder=start):
        assert len(set(ends)) == 1
