"""The MMDiT on a CUDA device equals itself on the CPU."""

import pytest
import torch

from tests.unit.model.parity import ours, reference, run_theirs, samples, sizes

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("seed", range(20))
def test_a_packed_unit_on_cuda_equals_diffusers_on_the_cpu(seed: int) -> None:
    from model.layout import Layout

    config = sizes(num_layers=1 + seed % 3)
    theirs = reference(config, seed)
    unit = samples(config, seed, 1 + seed % 5)
    model, device = ours(config, theirs).cuda(), torch.device("cuda")
    layout = Layout.build([s[0] for s in unit], [len(s[2]) for s in unit], config.axes_dims_rope).to(device)
    image, text = (torch.cat([s[k] for s in unit]).to(device) for k in (1, 2))
    sigma = torch.tensor([s[3] for s in unit], device=device)
    torch.backends.cuda.matmul.allow_tf32 = False
    mine, wanted = model(image, text, sigma, layout), run_theirs(theirs, unit)
    assert (mine.cpu() - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    mine.square().sum().backward()
    wanted.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and gradients[name] is not None:
            want = gradients[name]
            assert (parameter.grad.cpu() - want).abs().max() <= 1e-3 * want.abs().max().clamp(min=1e-3), name
