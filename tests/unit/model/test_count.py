"""Counts by formula equal what the networks hold and do."""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.config import MMDiTConfig, RecomputeConfig
from model.count import (
    executed_flops,
    forward_flops,
    parameters,
    per_token_and_pair,
    training_flops,
    utilisation,
)
from model.layout import Layout
from model.mmdit import MMDiT

TINY = MMDiTConfig(
    num_layers=3, attention_head_dim=16, num_attention_heads=3, joint_attention_dim=24, axes_dims_rope=(4, 6, 6)
)


def counted(work: object) -> int:
    # On the math backend attention is two plain products, which the counter knows on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return int(counter.get_total_flops())


def test_the_released_model_has_its_published_parameters() -> None:
    assert parameters(MMDiTConfig()) == 20_430_401_088


@pytest.mark.parametrize(
    "sizes",
    [
        TINY,
        TINY.model_copy(update={"num_layers": 1, "joint_attention_dim": 40}),
        TINY.model_copy(update={"use_layer3d_rope": True, "use_additional_t_cond": True}),
    ],
)
def test_parameters_are_those_of_both_networks(sizes: MMDiTConfig) -> None:
    theirs = QwenImageTransformer2DModel(**sizes.released())
    for network in (MMDiT(sizes), theirs):
        assert parameters(sizes) == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_forward_flops_of_a_packed_unit_are_the_sum_over_its_samples(zero_cond_t: bool) -> None:
    sizes = TINY.model_copy(update={"zero_cond_t": zero_cond_t})
    grids, text = [(0, 4, 6), (0, 5, 3), (0, 2, 2)], [7, 11, 1]
    images = [height * width for _, height, width in grids]
    layout = Layout.build([[grid] for grid in grids], text, TINY.axes_dims_rope)
    network = MMDiT(sizes)
    found = counted(
        lambda: network(torch.randn(sum(images), 64), torch.randn(sum(text), 24), torch.rand(len(text)), layout)
    )
    assert found == sum(forward_flops(sizes, i, t) for i, t in zip(images, text, strict=True))


def test_forward_flops_are_those_of_diffusers_less_the_last_text_output() -> None:
    network = QwenImageTransformer2DModel(**TINY.released())
    image, text, width = 24, 7, TINY.width
    found = counted(
        lambda: network(
            hidden_states=torch.randn(1, image, 64),
            encoder_hidden_states=torch.randn(1, text, 24),
            encoder_hidden_states_mask=None,
            timestep=torch.rand(1),
            img_shapes=[[(1, 4, 6)]],
        )
    )
    queries_out_and_mlp = 2 * text * (2 * width**2 + 8 * width**2)
    attention = 4 * width * text * (image + text)
    assert found - queries_out_and_mlp - attention == forward_flops(TINY, image, text)


def test_the_backward_has_two_products_for_each_of_the_forward() -> None:
    image, text, width = 24, 7, TINY.width
    layout = Layout.build([[(0, 4, 6)]], [text], TINY.axes_dims_rope)
    network = MMDiT(TINY)
    found = counted(
        lambda: network(torch.randn(image, 64), torch.randn(text, 24), torch.rand(1), layout).sum().backward()
    )
    # Only what enters the network has no gradient: latents, the timestep's sinusoids, and prompts before their norm.
    unneeded = 2 * (image * 64 * width + 256 * width)
    # Norms take their sums of squares as tiny matrix products, which are not of the model's.
    assert found == pytest.approx(training_flops(TINY, image, text) - unneeded, rel=0.005)


@pytest.mark.parametrize(
    "recompute",
    [
        RecomputeConfig(parts=parts, every=every)
        for parts in (
            ("norm", "gelu"),
            ("core",),
            ("attention",),
            ("mlp",),
            ("core", "mlp"),
            ("attention", "mlp"),
            ("block",),
        )
        for every in (1, 2)
    ],
    ids=str,
)
def test_recompute_executes_what_is_counted_for_it(recompute: RecomputeConfig) -> None:
    image, text = 24, 7
    layout = Layout.build([[(0, 4, 6)]], [text], TINY.axes_dims_rope)
    inputs = torch.randn(image, 64), torch.randn(text, 24), torch.rand(1), layout

    def step(network: MMDiT) -> None:
        network(*inputs).sum().backward()

    kept, redone = (counted(partial(step, MMDiT(TINY, None, said))) for said in (RecomputeConfig(), recompute))
    assert redone - kept == executed_flops(TINY, recompute, image, text) - training_flops(TINY, image, text)
    assert executed_flops(TINY, RecomputeConfig(), image, text) == training_flops(TINY, image, text)


@pytest.mark.parametrize(
    ("image", "text", "tera"), [(256, 64, 13.3), (1600, 256, 83.3), (6889, 64, 390.4), (8192, 256, 502.1)]
)
def test_training_flops_of_the_released_model_are_the_known_ones(image: int, text: int, tera: float) -> None:
    assert training_flops(MMDiTConfig(), image, text) / 1e12 == pytest.approx(tera, abs=0.2)


@pytest.mark.parametrize("image", [256, 1600, 6889, 13778])
@pytest.mark.parametrize("text", [8, 64, 256, 1024])
def test_the_short_form_is_within_a_percent(image: int, text: int) -> None:
    a, b = per_token_and_pair(MMDiTConfig())
    tokens = image + text
    assert a * tokens + b * tokens**2 == pytest.approx(training_flops(MMDiTConfig(), image, text), rel=0.01)


def test_arrays_count_like_numbers() -> None:
    image, text = np.asarray([256, 1600]), np.asarray([64, 512])
    expected = [training_flops(MMDiTConfig(), int(i), int(t)) for i, t in zip(image, text, strict=True)]
    assert training_flops(MMDiTConfig(), image, text).tolist() == expected


def test_utilisation_is_what_was_done_over_what_could_be() -> None:
    assert utilisation(989e12, 2.0, 989e12) == 0.5
