"""torch's packed kernel on a CUDA device is attention a sample at a time, and nothing crosses samples in it."""

import pytest
import torch
from torch import Tensor

from model.attention import Attend, Heads, attend_masked, attend_samples, attend_varlen
from model.layout import Layout
from tests.unit.model.parity import ours, reference, run_ours, run_theirs, samples, sizes

pytestmark = pytest.mark.gpu

AXES = (32, 16, 16)
CUDA = torch.device("cuda")


def heads_of(layout: Layout, dtype: torch.dtype, device: torch.device, *, queries: bool) -> tuple[Heads, Heads]:
    g = torch.Generator().manual_seed(1)
    streams = []
    for lengths in (layout.text_lengths, layout.image_lengths):
        parts = [torch.randn(sum(lengths), 3, 64, generator=g).bfloat16().to(device, dtype) for _ in range(3)]
        streams.append(Heads(*(part.requires_grad_() for part in parts)))
    text, image = streams
    return (text if queries else text._replace(q=None)), image


def outcome(attend: Attend, layout: Layout, dtype: torch.dtype, *, queries: bool) -> list[Tensor]:
    text, image = heads_of(layout, dtype, layout.image_owner.device, queries=queries)
    outputs = attend(text, image, layout)
    sum(out.float().square().sum() for out in outputs).backward()
    gradients = [part.grad for part in (*text, *image) if part is not None]
    return [part.detach().double().cpu() for part in (*outputs, *gradients)]


@pytest.mark.parametrize("queries", [True, False])
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("attend", [attend_samples, attend_masked, attend_varlen])
def test_attention_in_bfloat16_is_that_of_doubles_on_the_cpu(attend: Attend, seed: int, queries: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    numbers = torch.randint(1, 20, (4, 6), generator=g).tolist()
    pictures = [[(0, a, b), (1, c, d)][: 1 + a % 2] for a, b, c, d, _, _ in numbers]
    layout = Layout.build(pictures, [text for *_, text in numbers], AXES)
    wanted = outcome(attend_samples, layout, torch.float64, queries=queries)
    found = outcome(attend, layout.to(CUDA), torch.bfloat16, queries=queries)
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == want.shape
        assert (got - want).norm() <= 0.02 * want.norm()


@pytest.mark.parametrize("poison", [1e4, torch.nan])
@pytest.mark.parametrize("queries", [True, False])
def test_a_poisoned_neighbour_changes_no_one_else(poison: float, queries: bool) -> None:
    layout = Layout.build([[(0, 9, 7)], [(0, 3, 11), (1, 5, 5)], [(0, 1, 40)]], [70, 3, 5], AXES).to(CUDA)
    text, image = heads_of(layout, torch.bfloat16, CUDA, queries=queries)
    with torch.no_grad():
        clean = attend_varlen(text, image, layout)
        for stream, owner in ((text, layout.text_owner), (image, layout.image_owner)):
            for part in stream:
                if part is not None:
                    part[owner == 1] = poison
        dirty = attend_varlen(text, image, layout)
    for before, after, owner in zip(clean, dirty, (layout.text_owner, layout.image_owner), strict=True):
        others = owner[: len(before)] != 1
        assert torch.equal(before[others], after[others])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    "flags", [{}, {"zero_cond_t": True}, {"use_layer3d_rope": True, "use_additional_t_cond": True}], ids=str
)
def test_a_mixed_unit_in_bfloat16_is_as_near_to_fp32_as_diffusers_bfloat16_is(
    flags: dict[str, bool], seed: int
) -> None:
    config = sizes(**flags)
    theirs, unit = reference(config, seed), samples(config, seed, 4, (1, 2, 3))
    model = ours(config, theirs).to(CUDA, torch.bfloat16)
    with torch.no_grad():
        exact = run_theirs(theirs, unit)
        mine = (run_ours(model, unit).float().cpu() - exact).norm()
        peer = (run_theirs(theirs.bfloat16(), unit).float() - exact).norm()
    assert mine <= 1.25 * peer
