"""What the optimizer does to every weight: clipping, decay, accumulation, precision, and the order of its buckets."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from consumer.config import EmaConfig
from consumer.ema import Ema
from consumer.schedule import ScheduleConfig, rate
from model.init import seed_of
from model.mmdit import MMDiT
from parallel.engine import Engine
from parallel.shard import held
from tests.distributed import tiny
from tests.distributed.ranks import Ranks

LAYOUTS = [(1, 1, False), (2, 1, False), (2, 2, False), (2, 2, True), (4, 2, False), (4, 2, True)]
DECAY, LR, CLIP = 0.1, 3e-3, 0.05

# With an eps far above every gradient Adam's first step is lr / eps times the gradient: what was clipped shows.
FLAT = 1e6

LAST = "transformer_blocks.2."
NEVER = {
    f"{LAST}{layer}.{part}"
    for layer in ("attn.to_add_out", "attn.add_q_proj", "txt_mlp.net.0.proj", "txt_mlp.net.2")
    for part in ("weight", "bias")
} | {f"{LAST}attn.norm_added_q.weight"}
SHARED = f"{LAST}txt_mod.1.weight"
TRAINED_ROWS = 2 * tiny.CONFIG.width  # of SHARED, from the top


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of initial weights, none of them 0 or 1."""
    path = tmp_path_factory.mktemp("facts") / "weights.safetensors"
    weights = {}
    for name, parameter in MMDiT(tiny.CONFIG).named_parameters():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed_of("facts", name)))
        weights[name] = 1 + 0.1 * noise if name.endswith(("norm.weight", "_q.weight", "_k.weight")) else 0.1 * noise
    save_file(weights, path)
    return path


def keep(engine: Engine, path: Path, ema: Ema | None = None) -> list[Any]:
    """Write what this rank owns of the weights, or of their average, to a file; where each piece belongs."""
    pieces = [shard for shard in engine.shards() if shard.owned]
    live = [shard.tensors["param"] if ema is None else ema.of(shard) for shard in pieces]
    save_file({str(n): tensor.detach().float().clone() for n, tensor in enumerate(live)}, path)
    return [[s.name, s.place and [s.place.dim, s.place.start, s.place.stop], s.start, s.stop] for s in pieces]


def whole(start: Path, files: list[Path], places: list[list[Any]]) -> dict[str, Tensor]:
    """The whole weights from what every rank kept."""
    found = {name: torch.full(tensor.shape, math.nan) for name, tensor in load_file(start).items()}
    for file, pieces in zip(files, places, strict=True):
        tensors = load_file(file)
        for number, (name, place, first, end) in enumerate(pieces):
            part = found[name] if place is None else found[name].narrow(place[0], place[1], place[2] - place[1])
            flat = part.reshape(-1).clone()
            flat[first:end] = tensors[str(number)]
            part.copy_(flat.view(part.shape))
    assert not any(tensor.isnan().any() for tensor in found.values())
    return found


# Clipping.


def clip_on_rank(start: str, out: str, tp: int, sp: bool) -> list[Any]:
    """One clipped step whose length is the gradient's: the norm before, and where this rank's pieces belong."""
    here = tiny.mesh(tp, sp)
    engine = tiny.build(Path(start), here, tiny.optim(clip=CLIP, eps=FLAT, weight_decay=0.0))
    tiny.backward(engine, 0)
    norm, applied = engine.step(FLAT)
    assert applied
    places = keep(engine, Path(out, f"{here.world}-{tp}-{sp}-{here.rank}"))
    here.close()
    return [norm, places]


def test_clipping_by_the_global_norm_moves_every_layout_as_one_rank(ranks: Ranks, start: Path, tmp_path: Path) -> None:
    before = load_file(start)
    norms, moves = [], []
    for world, tp, sp in LAYOUTS:
        results = ranks.run(world, clip_on_rank, start=start, out=tmp_path, tp=tp, sp=sp)
        assert len({norm for norm, _ in results}) == 1, "every rank clips by the same norm"
        files = [tmp_path / f"{world}-{tp}-{sp}-{rank}" for rank in range(world)]
        after = whole(start, files, [places for _, places in results])
        norms.append(results[0][0])
        moves.append(torch.cat([(after[name] - before[name]).flatten() for name in sorted(before)]))
    assert norms[0] > 10 * CLIP, "nothing to clip"
    for layout, norm, move in zip(LAYOUTS, norms, moves, strict=True):
        assert norm == pytest.approx(norms[0], rel=1e-5), layout
        assert move.norm().item() == pytest.approx(CLIP, rel=1e-3), layout
        assert (move - moves[0]).norm() <= 1e-4 * CLIP, layout


# Decay.


def decay_on_rank(start: str, out: str, precision: str) -> list[Any]:
    """Two steps without any gradient: what is left moves by decay alone. The rates, and this rank's pieces."""
    here = tiny.mesh(2, False)
    engine = tiny.build(Path(start), here, tiny.optim(precision, weight_decay=DECAY))
    for _ in range(2):
        engine.zero_grad()
        loss, _ = tiny.unit_loss(engine.module, 0, 0)
        (loss * 0).backward()
        engine.finish(1)
        assert engine.step(LR) == (0.0, True)
    places = keep(engine, Path(out, f"{precision}-{here.rank}"))
    here.close()
    return places


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_matrices_decay_and_nothing_else_changes_by_a_bit(
    ranks: Ranks, start: Path, tmp_path: Path, precision: str
) -> None:
    places = ranks.run(4, decay_on_rank, start=start, out=tmp_path, precision=precision)
    after = whole(start, [tmp_path / f"{precision}-{rank}" for rank in range(4)], places)
    decayed = set()
    for name, tensor in load_file(start).items():
        # The model's own precision is where its fp32 main weights start from.
        before = tensor.bfloat16().float() if precision == "bf16" else tensor
        shrunk = before * (1 - LR * DECAY) * (1 - LR * DECAY)
        if name == SHARED:
            rows = slice(None, TRAINED_ROWS)
            assert torch.equal(after[name][TRAINED_ROWS:], before[TRAINED_ROWS:]), "never-trained rows"
            assert torch.allclose(after[name][rows], shrunk[rows], rtol=1e-6, atol=0)
            assert not torch.equal(after[name][rows], before[rows])
        elif not torch.equal(after[name], before):
            assert torch.allclose(after[name], shrunk, rtol=1e-6, atol=0), name
            decayed.add(name)
    matrices = {name for name, p in MMDiT(tiny.CONFIG).named_parameters() if p.dim() == 2} - NEVER - {SHARED}
    assert decayed == matrices


def train_on_rank(start: str, out: str) -> list[Any]:
    """Three real steps in bf16 with decay and an average: this rank's pieces of the weights and of the average."""
    here = tiny.mesh(2, False)
    engine = tiny.build(Path(start), here, tiny.optim("bf16", weight_decay=DECAY))
    ema = Ema(EmaConfig(decay=0.7), engine)
    for step in range(3):
        tiny.backward(engine, step)
        engine.step(LR)
        ema.update(engine, step)
    places = [keep(engine, Path(out, f"{kind}-{here.rank}"), of) for kind, of in (("weights", None), ("average", ema))]
    here.close()
    return places


def test_what_is_never_trained_leaves_training_and_its_average_as_it_came(
    ranks: Ranks, start: Path, tmp_path: Path
) -> None:
    results = ranks.run(4, train_on_rank, start=start, out=tmp_path)
    before = {name: tensor.bfloat16().float() for name, tensor in load_file(start).items()}
    for number, kind in enumerate(("weights", "average")):
        files = [tmp_path / f"{kind}-{rank}" for rank in range(4)]
        after = whole(start, files, [places[number] for places in results])
        assert {name for name in before if torch.equal(after[name], before[name])} == NEVER
        assert torch.equal(after[SHARED][TRAINED_ROWS:], before[SHARED][TRAINED_ROWS:])
        assert not (after[SHARED][:TRAINED_ROWS] == before[SHARED][:TRAINED_ROWS]).all(dim=1).any()
        # What is exported in the model's own precision is the bits that were loaded.
        assert torch.equal(after[SHARED].bfloat16()[TRAINED_ROWS:].float(), before[SHARED][TRAINED_ROWS:])


# Precision and the schedule.


def mirror_on_rank(start: str) -> list[float]:
    """Steps in bf16 beside torch's AdamW in fp32 on the same gradients: the largest differences, main and rounded."""
    here = tiny.mesh(2, False)
    engine = tiny.build(Path(start), here, tiny.optim("bf16", weight_decay=DECAY, clip=0.0))
    schedule = ScheduleConfig(kind="wsd", warmup_steps=2, total_steps=4, decay_steps=1, min_ratio=0.1)
    state = [item for item in held(engine._optimizer) if not hasattr(item.parameter, "idle_rows")]
    mains = [engine._optimizer._get_main_param_and_optimizer_states(item.parameter)["param"].detach() for item in state]
    ours = [main.clone().requires_grad_() for main in mains]
    groups = [
        {"params": [p for p, item in zip(ours, state, strict=True) if item.parameter.dim() > 1], "weight_decay": DECAY},
        {"params": [p for p, item in zip(ours, state, strict=True) if item.parameter.dim() == 1], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=1.0, betas=engine.config.betas, eps=engine.config.eps)
    for step in range(4):
        tiny.backward(engine, step)
        for weight, item in zip(ours, state, strict=True):
            weight.grad = item.gradient.clone()
        for group in plain.param_groups:
            group["lr"] = LR * rate(schedule, step)
        plain.step()
        engine.step(LR * rate(schedule, step))
    apart = max(
        ((one - other).abs() / (other.abs() + 1e-6)).max().item() for one, other in zip(mains, ours, strict=True)
    )
    with torch.no_grad():
        tiny.unit_loss(engine.module, 0, 0)  # gathers what the last step left
    rounded = all(
        torch.equal(item.parameter.view(-1)[item.start : item.stop], main.bfloat16())
        for item, main in zip(state, mains, strict=True)
    )
    count, steps = len(state), engine.updates
    here.close()
    return [apart, rounded, count, steps]


def test_bf16_weights_are_a_plain_fp32_adamw_rounded(ranks: Ranks, start: Path) -> None:
    for apart, rounded, count, steps in ranks.run(4, mirror_on_rank, start=start):
        assert count > 20 and steps == 4
        assert apart <= 1e-6, "main weights are torch's AdamW in fp32"
        assert rounded, "what the model computes with is the main weights in bf16, to the bit"


# Accumulation and buckets.


def accumulate_on_rank(start: str) -> list[Any]:
    """The gradients of one backward over all units of this rank, and of one each: how far apart, and their norm."""
    here = tiny.mesh(1, False)
    norms, found = [], []
    for together in (True, False):
        engine = tiny.build(Path(start), here, tiny.optim())
        engine.zero_grad()
        units = range(here.dp_rank, tiny.UNITS, here.dp)
        if together:
            torch.stack([tiny.unit_loss(engine.module, 0, unit)[0] for unit in units]).sum().backward()
        else:
            for unit in units[:-1]:
                with engine.no_sync():
                    tiny.unit_loss(engine.module, 0, unit)[0].backward()
            tiny.unit_loss(engine.module, 0, units[-1])[0].backward()
        engine.finish(8)
        found.append(torch.cat([item.gradient.clone() for item in held(engine._optimizer)]))
        norms.append(float(engine.norm()))
    here.close()
    return [(found[0] - found[1]).norm().item(), *norms]


def test_accumulating_over_units_is_one_big_step(ranks: Ranks, start: Path) -> None:
    for apart, together, separate in ranks.run(2, accumulate_on_rank, start=start):
        assert together == pytest.approx(separate, rel=1e-6) and together > 0
        assert apart <= 1e-6 * together


def buckets_on_rank(start: str) -> dict[str, list[int]]:
    """In which order buckets' gradients leave and their parameters are awaited, over one step of two units."""
    here = tiny.mesh(1, False)
    engine = tiny.build(Path(start), here, tiny.optim())
    left: list[int] = []
    awaited: list[int] = []
    groups = engine._ddp.bucket_groups

    def noted(call: Any, number: int, order: list[int]) -> Any:
        def noting(*arguments: Any, **named: Any) -> Any:
            if number not in order:
                order.append(number)
            return call(*arguments, **named)

        return noting

    tiny.backward(engine, 0)  # in the first step megatron only learns which gradients come
    engine.step(LR)
    engine.zero_grad()
    for number, group in enumerate(groups):
        group.start_grad_sync = noted(group.start_grad_sync, number, left)
        group.finish_param_sync = noted(group.finish_param_sync, number, awaited)
    with engine.no_sync():
        tiny.unit_loss(engine.module, 0, here.rank)[0].backward()
    early = len(left)
    loss, _ = tiny.unit_loss(engine.module, 0, here.rank)
    seen: list[int] = []
    engine.module.img_in.weight.register_hook(lambda gradient: seen.append(len(left)))
    loss.backward()
    here_before_end = seen[0]
    engine.finish(2)
    here.close()
    return {"groups": [len(groups)], "left": left, "awaited": awaited, "early": [early], "before": [here_before_end]}


def test_buckets_leave_from_the_models_end_and_are_awaited_from_its_start(ranks: Ranks, start: Path) -> None:
    for said in ranks.run(2, buckets_on_rank, start=start):
        (count,) = said["groups"]
        assert count >= 5
        assert said["early"] == [0], "nothing leaves under no_sync"
        assert said["left"] == list(range(count))
        assert said["awaited"] == list(reversed(range(count)))
        assert said["before"][0] >= count - 2, "all but the first layers' leave while the backward goes on"
