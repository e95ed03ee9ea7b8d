"""A step on tensors without memory needs what the real one needs."""

import inspect

import pytest
import torch
from torch import Tensor, nn

from launch.dry import Form, Pass, Sample, _kept_as_compiled, dry_mesh, dry_pass, unit_batch
from model import fused
from model.config import MMDiTConfig, Part, RecomputeConfig
from model.count import training_flops
from model.layout import Layout
from model.mmdit import MMDiT

CONFIG = MMDiTConfig(
    num_layers=2,
    attention_head_dim=32,
    num_attention_heads=4,
    joint_attention_dim=64,
    axes_dims_rope=(8, 12, 12),
    blocks_per_gather=2,
)
UNIT: list[Sample] = [((9, 7), 33), ((12, 12), 70)]


def run(form: Form, dtype: torch.dtype = torch.float32, tp: int = 1, sp: bool = False, *parts: Part) -> Pass:
    with dry_mesh(tp, sp) as mesh:
        return dry_pass(CONFIG, mesh, dtype, UNIT, form, recompute=RecomputeConfig(parts=parts))


def saved(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes that a real forward keeps for its backward, every storage once, weights and angles left out."""
    layout = Layout.build([[(0, *size)] for size, _ in UNIT], [text for _, text in UNIT], CONFIG.axes_dims_rope)
    batch = unit_batch(CONFIG, layout, dtype, torch.device("cpu"))
    left_out = {
        item.untyped_storage().data_ptr() for item in (*model.parameters(), *vars(layout).values()) if _is(item)
    }
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in left_out:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch.image, batch.text, batch.sigma, layout)
    return sum(found.values())


def _is(item: object) -> bool:
    return isinstance(item, Tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_what_a_real_forward_keeps(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    real = saved(MMDiT(CONFIG).to(dtype), dtype)
    assert real == pytest.approx(sum(run("cpu", dtype).kept.values()), rel=0.04)


@pytest.mark.parametrize("form", ["cpu", "cuda"])
def test_the_flops_that_run_are_the_models(form: Form) -> None:
    model = sum(training_flops(CONFIG, height * width, text) for (height, width), text in UNIT)
    # The model counts gradients of its inputs, which nobody needs.
    assert run(form, torch.bfloat16).flops == pytest.approx(model, rel=0.02)


def test_recomputing_blocks_runs_a_third_more() -> None:
    once, again = run("cuda", torch.bfloat16), run("cuda", torch.bfloat16, 1, False, "block")
    assert again.flops == pytest.approx(4 / 3 * once.flops, rel=0.05)


def test_recompute_keeps_less_and_splitting_too() -> None:
    form: Form = "cuda"  # its dry passes take no time
    whole = run(form, torch.bfloat16)
    assert run(form, torch.bfloat16, 1, False, "norm", "gelu").peak < 0.9 * whole.peak
    assert sum(run(form, torch.bfloat16, 1, False, "block").kept.values()) < 0.2 * sum(whole.kept.values())
    split, scattered = run(form, torch.bfloat16, 2), run(form, torch.bfloat16, 2, True)
    assert scattered.peak < split.peak < whole.peak
    assert not whole.traffic and scattered.traffic["all-gather"] > split.traffic["all-gather"] > 0
    # A ring's all-reduce is its reduce-scatter and its all-gather.
    assert scattered.traffic["reduce-scatter"] == pytest.approx(split.traffic["all-reduce"], rel=0.1)


@pytest.mark.parametrize("name", [name for name, _ in inspect.getmembers(fused) if name.startswith("plain_")])
def test_what_stands_in_for_compiled_parts_keeps_what_they_keep(name: str) -> None:
    plain = getattr(fused, name)
    owner = torch.repeat_interleave(torch.arange(3), 100)
    tokens, sample, heads = torch.randn(300, 64), torch.randn(3, 64), torch.randn(300, 4, 32)
    given = {
        "plain_modulate": (tokens, sample, sample.clone(), owner),
        "plain_add_gated": (tokens, sample, tokens.clone(), owner),
        "plain_norm_rotate": (heads, torch.randn(32), torch.randn(300, 16), torch.randn(300, 16)),
        "plain_bias_gelu": (tokens, torch.randn(64)),
    }[name]
    # Angles have no gradient, and stay fp32.
    inputs = [item.bfloat16().requires_grad_() if _trains(name, n) else item for n, item in enumerate(given)]
    torch._dynamo.reset()
    compiled = torch.compile(plain, dynamic=True, backend="aot_eager_decomp_partition")
    assert _kept(_kept_as_compiled[plain], inputs) == _kept(compiled, inputs)


def _trains(name: str, n: int) -> bool:
    return n < {"plain_modulate": 3, "plain_add_gated": 3, "plain_norm_rotate": 2, "plain_bias_gelu": 2}[name]


def _kept(function: object, inputs: list[Tensor]) -> list[tuple[tuple[int, ...], torch.dtype]]:
    assert callable(function)
    found: dict[int, tuple[tuple[int, ...], torch.dtype]] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tuple(tensor.shape), tensor.dtype
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(*inputs)
    return sorted(found.values(), key=str)
