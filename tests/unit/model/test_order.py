"""The order of the MMDiT's weights is the order in which a forward first reads them."""

import torch
from torch import nn

from model.mmdit import MMDiT
from tests.unit.model.parity import run_ours, samples, sizes


def test_weights_are_registered_in_the_order_of_their_first_use() -> None:
    model = MMDiT(sizes(num_layers=4, blocks_per_gather=2))
    names = {parameter: name for name, parameter in model.named_parameters()}
    used: list[str] = []

    def note(module: nn.Module, inputs: object) -> None:
        used.extend(names[parameter] for parameter in module.parameters(recurse=False))

    for module in model.modules():
        module.register_forward_pre_hook(note)
    with torch.no_grad():
        run_ours(model, samples(model.config, 1, 2))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert [name for name in used if name in set(trained)] == trained
