"""Every published variant of the MMDiT is the reference's: edit, zero_cond_t, layered, and their mixtures in a unit."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from model.config import MMDiTConfig
from model.layout import Layout, LayoutError
from model.mmdit import MMDiT
from tests.unit.model.parity import (
    Sample,
    assert_bfloat16_as_near,
    assert_equal,
    fill_golden,
    golden_tokens,
    layout_of,
    ours,
    reference,
    run_ours,
    samples,
    sizes,
)

LAYERED = {"use_layer3d_rope": True, "use_additional_t_cond": True}

# Flags of the weights, and how many pictures a sample may have.
VARIANTS: dict[str, tuple[dict[str, bool], tuple[int, ...]]] = {
    "one reference": ({}, (2,)),
    "several references": ({}, (3, 4)),
    "zero_cond_t": ({"zero_cond_t": True}, (2, 3)),
    "zero_cond_t with classes": ({"zero_cond_t": True, "use_additional_t_cond": True}, (1, 3)),
    "layered": (LAYERED, (2, 3, 5)),
    "mixed tasks": ({}, (1, 2, 4)),
    "mixed tasks, zero_cond_t": ({"zero_cond_t": True}, (1, 2, 4)),
    "mixed tasks, layered": (LAYERED, (1, 2, 4)),
}


def config_of(variant: str, **over: object) -> MMDiTConfig:
    return sizes(**VARIANTS[variant][0], **over)


def unit_of(variant: str, seed: int, count: int, **over: object) -> tuple[MMDiTConfig, list[Sample]]:
    config = config_of(variant, **over)
    return config, samples(config, seed, count, VARIANTS[variant][1])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_packed_unit_equals_diffusers_forward_and_every_gradient(variant: str, seed: int) -> None:
    over = {"num_layers": 1 + seed % 3, "num_attention_heads": 2 + seed % 3}
    config, unit = unit_of(variant, 100 + seed, 1 + seed % 4, **over)
    theirs = reference(config, seed)
    assert_equal(ours(config, theirs), theirs, unit, seed)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_as_near_to_fp32_as_diffusers_bfloat16_is(variant: str) -> None:
    assert_bfloat16_as_near(
        unit_of(variant, 200 + seed, 2, num_layers=2, num_attention_heads=1 + seed % 3) for seed in range(20)
    )


@pytest.mark.parametrize("poison", [1e4, torch.nan])
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_crosses_from_a_poisoned_neighbour(variant: str, poison: float) -> None:
    config, unit = unit_of(variant, 7, 3)
    model = ours(config, reference(config, 7))
    lengths = list(layout_of(config, unit).target_lengths)
    with torch.no_grad():
        clean = run_ours(model, unit).split(lengths)
        grids, image, text, sigma = unit[1]
        unit[1] = (grids, image * 0 + poison, text * 0 - poison, 1 - sigma)
        poisoned = run_ours(model, unit).split(lengths)
    assert torch.allclose(clean[0], poisoned[0], atol=1e-6)
    assert torch.allclose(clean[2], poisoned[2], atol=1e-6)
    assert not torch.allclose(clean[1], poisoned[1], atol=1e-6)


@pytest.mark.parametrize(("variant", "crosses"), [("one reference", True), ("zero_cond_t", False)])
def test_a_reference_is_modulated_by_the_noise_level_unless_zero_cond_t(variant: str, crosses: bool) -> None:
    """With one block a reference reaches the target by its keys and values alone, and they by their modulation."""
    config, ((grids, image, text, _), *_) = unit_of(variant, 3, 1, num_layers=1)
    model = ours(config, reference(config, 3))
    seen: list[Tensor] = []
    model.transformer_blocks[0].attn.to_k.register_forward_hook(lambda module, inputs, output: seen.append(output))
    target = grids[0][1] * grids[0][2]
    with torch.no_grad():
        for sigma in (0.2, 0.9):
            run_ours(model, [(grids, image, text, sigma)])
    assert not torch.equal(seen[0][:target], seen[1][:target])
    assert torch.equal(seen[0][target:], seen[1][target:]) is not crosses


def test_the_class_of_a_sample_changes_it_alone() -> None:
    config, unit = unit_of("layered", 5, 2)
    model, layout = ours(config, reference(config, 5)), layout_of(config, unit)
    image, text = (torch.cat([s[k] for s in unit]) for k in (1, 2))
    sigma = torch.tensor([s[3] for s in unit])
    with torch.no_grad():
        outs = [model(image, text, sigma, layout, torch.tensor(c)) for c in ([0, 0], [0, 1])]
    (first, second), (same, other) = (out.split(list(layout.target_lengths)) for out in outs)
    assert torch.equal(first, same)
    assert not torch.allclose(second, other)


# Case of the published recipe: flags, pictures (frame, height, width), and the output over all tokens, of which sum,
# sum of magnitudes, the first four and the last four are known to six digits from the reference's fp32 code.
GOLDEN = {
    "A": (
        {},
        [(0, 3, 4)],
        (-53.140466, 448.794226),
        [-3.266796, -2.186052, 2.410226, 3.444029],
        [2.558291, -1.619203, -3.264081, 0.289272],
    ),
    "C": (
        {},
        [(0, 3, 4), (1, 2, 2)],
        (-70.854308, 599.072079),
        [-3.269525, -2.188021, 2.412292, 3.446692],
        [2.793941, -1.689837, -3.523494, 0.272630],
    ),
    "D": (
        {"zero_cond_t": True},
        [(0, 3, 4), (1, 2, 2)],
        (-71.669458, 605.241678),
        [-3.269020, -2.185852, 2.412517, 3.444599],
        [2.950128, -1.745751, -3.698493, 0.269670],
    ),
    "E": (
        LAYERED,
        [(0, 2, 2), (1, 2, 2), (-1, 2, 2)],
        (-2.549665, 349.526756),
        [-2.474381, 0.895677, 2.654605, 0.444516],
        [-0.236193, -2.796438, -0.865657, 2.273415],
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_values_of_the_published_recipe(case: str) -> None:
    flags, grids, sums, first, last = GOLDEN[case]
    config = sizes(num_layers=2, num_attention_heads=2, **flags)
    model = MMDiT(config)
    fill_golden(model)
    assert len(list(model.parameters())) == (78 if case == "E" else 77)
    image, text = golden_tokens(config, sum(height * width for _, height, width in grids))
    layout = Layout.build([grids], [5], config.axes_dims_rope, layered=config.use_layer3d_rope)
    kind = torch.zeros(1, dtype=torch.long) if config.use_additional_t_cond else None
    with torch.no_grad():
        # The recipe takes every token's output, the references' too.
        out = model(image, text, torch.tensor([0.4]), replace(layout, target_rows=None), kind)
    assert (out.double().sum().item(), out.double().abs().sum().item()) == pytest.approx(sums, abs=4e-4)
    assert out.flatten()[:4].tolist() == pytest.approx(first, abs=1e-5)
    assert out.flatten()[-4:].tolist() == pytest.approx(last, abs=1e-5)


# What the published variants' config.json say, by name of the model.
BASE: dict[str, Any] = {
    "_class_name": "QwenImageTransformer2DModel",
    "_diffusers_version": "0.34.0.dev0",
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": False,
    "in_channels": 64,
    "joint_attention_dim": 3584,
    "num_attention_heads": 24,
    "num_layers": 60,
    "out_channels": 16,
    "patch_size": 2,
}
RELEASED = {
    "Qwen-Image": BASE | {"pooled_projection_dim": 768},
    "Qwen-Image-Edit": BASE,
    "Qwen-Image-Edit-2511": BASE | {"zero_cond_t": True},
    "Qwen-Image-Layered": BASE | LAYERED,
}


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_settings_load_and_come_back(name: str) -> None:
    config = MMDiTConfig.from_released(json.dumps(RELEASED[name]))
    known = {key: value for key, value in RELEASED[name].items() if key in config.released()}
    assert {key: value for key, value in json.loads(json.dumps(config.released())).items() if key in known} == known
    with torch.device("meta"):
        mine, theirs = MMDiT(config), QwenImageTransformer2DModel(**config.released())
    shapes = {key: weight.shape for key, weight in theirs.state_dict().items()}
    assert {key: weight.shape for key, weight in mine.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance_embeds": True}, "guidance_embeds"),
        ({"zero_cond_t": True, "use_layer3d_rope": True}, "zero_cond_t"),
        ({"a_flag_of_tomorrow": True}, "a_flag_of_tomorrow"),
        ({"axes_dims_rope": [16, 56]}, "axes_dims_rope"),
        ({"num_layers": "60"}, "num_layers"),
    ],
)
def test_settings_that_the_model_does_not_do_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MMDiTConfig.from_released(json.dumps(BASE | change))


@pytest.mark.parametrize("text", ["[]", "null", "{", ""])
def test_a_released_settings_file_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"MMDiTConfig|JSON|Expecting"):
        MMDiTConfig.from_released(text)


def test_a_class_is_asked_for_where_the_weights_have_one_and_refused_elsewhere() -> None:
    for variant, wrong, message in (
        ("layered", None, "absent"),
        ("layered", torch.tensor([0]), "2 samples"),
        ("layered", torch.tensor([0.0, 1.0]), "float32"),
        ("layered", torch.tensor([0, 2]), "classes are 0 to 1"),
        ("layered", torch.tensor([-1, 0]), "classes are 0 to 1"),
        ("one reference", torch.tensor([0, 1]), "given"),
    ):
        config, unit = unit_of(variant, 1, 2)
        model, layout = MMDiT(config), layout_of(config, unit)
        image, text = (torch.cat([s[k] for s in unit]) for k in (1, 2))
        with pytest.raises(LayoutError, match=message):
            model(image, text, torch.rand(2), layout, wrong)


@pytest.mark.parametrize("seed", range(3))
def test_samples_of_a_unit_are_those_of_units_of_one(seed: int) -> None:
    config, unit = unit_of("mixed tasks, zero_cond_t", seed, 4)
    model = ours(config, reference(config, seed))
    with torch.no_grad():
        together = run_ours(model, unit)
        alone = torch.cat([run_ours(model, [sample]) for sample in unit])
    assert torch.allclose(together, alone, atol=1e-5)
