"""Recompute changes no bit of losses or gradients, keeps less, and is for training alone."""

import gc
from itertools import chain, combinations
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch._dynamo.utils import counters
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.config import Part, RecomputeConfig, RecomputeError
from model.fused import Rows
from model.layout import Layout
from model.mmdit import MMDiT
from model.provider import Plain
from model.recompute import again
from tests.unit.model.parity import Sample, ours, reference, run_ours, samples, sizes

PARTS: tuple[Part, ...] = get_args(Part)
KINDS: list[tuple[Part, ...]] = [
    *((part,) for part in PARTS),
    ("norm", "gelu"),
    ("norm", "gelu", "core"),
    ("core", "mlp"),
    ("attention", "mlp"),
]
VARIANTS = [{}, {"zero_cond_t": True}, {"use_layer3d_rope": True, "use_additional_t_cond": True}]


def pushed(model: MMDiT, unit: list[Sample]) -> dict[str, Tensor]:
    """The output of `unit` and the gradient of every weight that has one."""
    model.zero_grad()
    out = run_ours(model, unit)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return gradients | {"out": out.detach()}


def with_recompute(model: MMDiT, recompute: RecomputeConfig, *, bias_apart: bool | None = None) -> MMDiT:
    made = MMDiT(model.config, Plain(bias_apart), recompute).to(model.proj_out.weight.dtype)
    made.load_state_dict(model.state_dict())
    return made


def assert_same_bits(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, want in wanted.items():
        assert torch.equal(found[name], want), name


# Seeds that go round all of them: kinds by 2, variants by 3, layers by 4.
@pytest.mark.parametrize("seed", range(24))
def test_outputs_and_every_gradient_are_bit_equal(seed: int) -> None:
    config = sizes(num_layers=1 + seed % 4, num_attention_heads=1 + seed % 3, **VARIANTS[seed % 3])
    unit = samples(config, seed, 1 + seed % 4, (1, 2, 3))
    model = ours(config, reference(config, seed)).to([torch.float32, torch.bfloat16][seed // 2 % 2])
    wanted = pushed(model, unit)
    for kind in KINDS[seed % 2 :: 2]:
        assert_same_bits(pushed(with_recompute(model, RecomputeConfig(parts=kind)), unit), wanted)


def test_any_mix_of_parts_is_bit_equal() -> None:
    config = sizes(num_layers=2)
    unit, model = samples(config, 3, 2), ours(config, reference(config, 3))
    wanted = pushed(model, unit)
    for kind in chain(combinations(PARTS, 2), [PARTS]):
        assert_same_bits(pushed(with_recompute(model, RecomputeConfig(parts=kind)), unit), wanted)


@pytest.mark.parametrize("backend", ["samples", "masked"])
def test_every_attention_and_biases_apart_are_bit_equal(backend: str) -> None:
    config = sizes(attention=backend)
    unit = samples(config, 4, 3)
    model = with_recompute(ours(config, reference(config, 4)), RecomputeConfig(), bias_apart=True)
    wanted = pushed(model, unit)
    for kind in KINDS:
        assert_same_bits(pushed(with_recompute(model, RecomputeConfig(parts=kind), bias_apart=True), unit), wanted)


@pytest.mark.long
# torch's own compiler still imports torch.jit, and looks at gradients that it then hides the warning of.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:The .grad attribute:UserWarning")
def test_the_compiled_steps_of_cuda_are_bit_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without runs modulation and gates take the form that they have on CUDA.
    monkeypatch.setattr(Rows, "of", classmethod(lambda cls, owner: cls(owner, ())))
    config = sizes(num_layers=2)
    unit, model = samples(config, 5, 2), ours(config, reference(config, 5))
    wanted, made = pushed(model, unit), counters["stats"]["unique_graphs"]
    assert made
    for kind in (("norm", "gelu", "core"), ("attention", "mlp"), ("block",)):
        assert_same_bits(pushed(with_recompute(model, RecomputeConfig(parts=kind)), unit), wanted)
    assert counters["stats"]["unique_graphs"] == made  # nothing is compiled for it


class Alive(TorchDispatchMode):
    """Bytes of all that is made inside it and still lives, `model`'s weights apart."""

    def __init__(self, model: MMDiT) -> None:
        super().__init__()
        self._weights = {p.untyped_storage()._cdata for p in model.parameters()}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._weights:
                storage = tensor.untyped_storage()
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def bytes(self) -> int:
        return sum(size for storage, size in self._made.values() if not storage.expired())


def widths_kept(parts: tuple[Part, ...]) -> float:
    """Numbers a token that a block keeps for its backward, in widths of the model."""
    tokens, text, found = 20 * 20, 112, []
    for layers in (3, 2):
        config = sizes(num_layers=layers, attention_head_dim=64, axes_dims_rope=(16, 24, 24))
        model = MMDiT(config, recompute=RecomputeConfig(parts=parts))
        layout = Layout.build([[(0, 20, 20)]], [text], config.axes_dims_rope)
        image, prompt, sigma = torch.randn(tokens, 16), torch.randn(text, 24), torch.rand(1)
        with Alive(model) as alive:
            out = model(image, prompt, sigma, layout)
            found.append(alive.bytes() / 4 / config.width)
        assert out.requires_grad
    return (found[0] - found[1]) / (tokens + text)


# Of a block without recompute: per stream its tokens, entered ones, q, k, v, normed q and k, keys and values brought
# together, the answer (by attention and by the row linear), the update; MLP: tokens, entered ones, 4 and 4, the update.
@pytest.mark.parametrize(
    ("parts", "widths"),
    [
        ((), 21.6),
        (("norm",), 18.6),
        (("gelu",), 17.6),
        (("core",), 17.1),
        (("attention",), 13.0),
        (("mlp",), 11.6),
        (("norm", "gelu"), 14.6),
        (("norm", "gelu", "core"), 10.0),
        (("core", "mlp"), 7.0),
        (("attention", "mlp"), 3.0),
        (("block",), 1.0),
    ],
)
def test_a_block_keeps_no_more_than_it_says(parts: tuple[Part, ...], widths: float) -> None:
    assert widths_kept(parts) == pytest.approx(widths, abs=0.1)


@pytest.mark.parametrize("backward", [True, False])
def test_nothing_of_a_graph_outlives_it_without_the_garbage_collector(backward: bool) -> None:
    config = sizes()
    unit = samples(config, 6, 3)
    model = ours(config, reference(config, 6))
    left = {}
    for kind in ((), *KINDS):
        made = with_recompute(model, RecomputeConfig(parts=kind))
        pushed(made, unit)  # gradients exist from now on
        gc.disable()
        try:
            with Alive(made) as alive:
                out = run_ours(made, unit).square().sum()
                if backward:
                    out.backward()
                del out
                left[kind] = alive.bytes()
        finally:
            gc.enable()
    assert len(set(left.values())) == 1, left


def test_gradients_can_be_taken_twice_from_one_forward() -> None:
    config = sizes()
    unit, model = samples(config, 7, 2), ours(config, reference(config, 7))
    for kind in ((), *KINDS):
        made = with_recompute(model, RecomputeConfig(parts=kind))
        weights = [p for p in made.parameters() if p.requires_grad]
        loss = run_ours(made, unit).square().sum()
        first = torch.autograd.grad(loss, weights, retain_graph=True)
        second = torch.autograd.grad(loss, weights)
        assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_only_training_with_gradients_runs_anything_again(training: bool) -> None:
    config = sizes()
    model = with_recompute(ours(config, reference(config, 8)), RecomputeConfig(parts=("block",))).train(training)
    unit, runs = samples(config, 8, 2), []
    model.transformer_blocks[0].attn.register_forward_pre_hook(lambda module, inputs: runs.append(1))
    with torch.no_grad():
        run_ours(model, unit)
    assert len(runs) == 1
    run_ours(model, unit).sum().backward()
    assert len(runs) == (3 if training else 2)


def test_blocks_are_chosen_by_ranges_and_then_every_kth_of_them() -> None:
    def chosen(**said: Any) -> list[int]:
        return [block for block, parts in enumerate(RecomputeConfig(parts=("mlp",), **said).of(8)) if parts]

    assert chosen() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert chosen(every=3) == [0, 3, 6]
    assert chosen(blocks=((1, 3), (5, 8))) == [1, 2, 5, 6, 7]
    assert chosen(blocks=((1, 3), (5, 8)), every=2) == [1, 5, 7]
    assert RecomputeConfig().of(2) == [frozenset(), frozenset()]


@pytest.mark.parametrize("blocks", [((2, 2),), ((3, 1),), ((0, 2), (1, 3)), ((-1, 2),)])
def test_ranges_that_are_empty_or_overlap_are_refused(blocks: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValidationError, match=r"recompute\.blocks: \[-?\d, \d\] after block"):
        RecomputeConfig(parts=("mlp",), blocks=blocks)


def test_blocks_beyond_the_model_are_refused_with_what_fits() -> None:
    with pytest.raises(RecomputeError, match=r"recompute\.blocks: \[1, 4\] ends beyond the model's 3 blocks; end at 3"):
        MMDiT(sizes(num_layers=3), recompute=RecomputeConfig(parts=("mlp",), blocks=((1, 4),)))


def test_what_a_reader_keeps_in_another_shape_stays_kept_and_right() -> None:
    x = torch.randn(4, 6, requires_grad=True)

    def found(redo: bool) -> Tensor:
        read = again(redo, lambda: (x.exp(),), lambda made: (made.view(6, 4) @ torch.ones(4, 2)).square() * made.sum())
        return torch.autograd.grad(read.sum(), x)[0]

    assert torch.equal(found(True), found(False))
