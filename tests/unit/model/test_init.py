"""Initial weights do not depend on the layout, and a fresh model is the identity on its way to zero."""

import torch

from model.init import draw, fill, shapes
from model.mmdit import MMDiT
from tests.unit.model.parity import run_ours, samples, sizes


def test_every_parameter_is_filled_and_the_first_velocity_is_zero() -> None:
    config = sizes()
    model = MMDiT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    fill(model, 3)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not run_ours(model, samples(config, 1, 3)).any()


def test_a_slice_is_filled_with_its_part_of_the_whole() -> None:
    config = sizes()
    name, shape = next((n, s) for n, s in shapes(config).items() if n.endswith("to_q.weight"))
    whole, model = draw(name, shape, 3), MMDiT(config)
    layer = model.blocks[0].attn.to_q
    layer.weight = torch.nn.Parameter(torch.empty(shape[0] // 2, shape[1]))
    fill(model, 3, lambda p: (0, shape[0] // 2, shape[0]) if p is layer.weight else None)
    assert torch.equal(layer.weight, whole[shape[0] // 2 :])


def test_weights_differ_by_name_and_by_seed() -> None:
    shape = torch.Size((8, 8))
    assert not torch.equal(draw("a.weight", shape, 1), draw("b.weight", shape, 1))
    assert not torch.equal(draw("a.weight", shape, 1), draw("a.weight", shape, 2))
