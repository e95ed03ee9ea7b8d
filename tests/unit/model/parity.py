"""Ours and diffusers' transformer on the same weights and samples."""

from collections.abc import Iterable, Sequence

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

from model.config import MMDiTConfig
from model.layout import Layout
from model.mmdit import MMDiT
from model.rope import numbered

Sample = tuple[list[tuple[int, int, int]], Tensor, Tensor, float]  # grids, image tokens, text tokens, sigma


def sizes(**over: object) -> MMDiTConfig:
    """A tiny model with the released one's shape of things."""
    base = {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 24,
        "axes_dims_rope": (8, 4, 4),
        "blocks_per_gather": 2,
    }
    return MMDiTConfig(**base | over)


def reference(config: MMDiTConfig, seed: int) -> QwenImageTransformer2DModel:
    """diffusers' model with seeded weights, every one of them away from zero and from its default."""
    theirs = QwenImageTransformer2DModel(**config.released())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in theirs.parameters():
            fan = parameter.shape[-1] if parameter.dim() > 1 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
            if parameter.dim() == 1 and parameter.shape[0] in (config.attention_head_dim, config.joint_attention_dim):
                parameter.add_(1)
    return theirs


def ours(config: MMDiTConfig, theirs: QwenImageTransformer2DModel) -> MMDiT:
    model = MMDiT(config)
    model.load_state_dict(theirs.state_dict(), strict=True)
    return model


def samples(config: MMDiTConfig, seed: int, count: int, pictures: Sequence[int] = (1,)) -> list[Sample]:
    """Samples of mixed picture sizes, odd sides among them, and mixed prompt lengths.

    Each has one of the counts `pictures` of pictures, each with its own size: the target and its references, or layers
    and their condition.
    """
    g = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    made = []
    for _ in range(count):
        many = pictures[number(0, len(pictures) - 1)] if len(pictures) > 1 else pictures[0]
        grids = numbered([(number(1, 7), number(1, 7)) for _ in range(many)], layered=config.use_layer3d_rope)
        image = torch.randn(sum(h * w for _, h, w in grids), config.in_channels, generator=g)
        text = torch.randn(number(1, 11), config.joint_attention_dim, generator=g)
        made.append((grids, image, text, float(torch.rand((), generator=g))))
    return made


def layout_of(config: MMDiTConfig, unit: list[Sample]) -> Layout:
    lengths = [len(text) for _, _, text, _ in unit]
    return Layout.build([s[0] for s in unit], lengths, config.axes_dims_rope, layered=config.use_layer3d_rope)


def kinds(config: MMDiTConfig, unit: list[Sample]) -> Tensor | None:
    """A class for each sample, both of them in use, where the weights ask for one."""
    return torch.arange(len(unit)) % 2 if config.use_additional_t_cond else None


def run_ours(model: MMDiT, unit: list[Sample]) -> Tensor:
    """The unit packed, on the model's device: velocity [targets, 4 c]."""
    weight = model.proj_out.weight
    image, text = (torch.cat([s[k] for s in unit]).to(weight.device, weight.dtype) for k in (1, 2))
    sigma, classes = torch.tensor([s[3] for s in unit], device=weight.device), kinds(model.config, unit)
    layout = layout_of(model.config, unit).to(weight.device)
    return model(image, text, sigma, layout, None if classes is None else classes.to(weight.device))


def run_theirs(model: QwenImageTransformer2DModel, unit: list[Sample]) -> Tensor:
    """The same samples one by one, as diffusers takes them without padding, each cut to its target as pipelines do."""
    dtype = model.proj_out.weight.dtype
    classes = kinds(model.config, unit)
    outputs = []
    for number, (grids, image, text, sigma) in enumerate(unit):
        out = model(
            hidden_states=image[None].to(dtype),
            encoder_hidden_states=text[None].to(dtype),
            encoder_hidden_states_mask=None,
            timestep=torch.tensor([sigma], dtype=dtype),
            img_shapes=[[(1, height, width) for _, height, width in grids]],
            additional_t_cond=None if classes is None else classes[number : number + 1],
            return_dict=False,
        )[0][0]
        target = grids[:-1] or grids if model.config.use_layer3d_rope else grids[:1]
        outputs.append(out[: sum(height * width for _, height, width in target)])
    return torch.cat(outputs)


def assert_gradients_equal(model: MMDiT, theirs: QwenImageTransformer2DModel, relative: float = 1e-5) -> None:
    """Every parameter's gradient in `model` is the reference's, within `relative` of its largest element."""
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        want = gradients[name] if gradients[name] is not None else torch.zeros_like(parameter)
        got = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        assert (got - want).abs().max() <= relative * want.abs().max().clamp(min=1e-3), name


def assert_equal(model: MMDiT, theirs: QwenImageTransformer2DModel, unit: list[Sample], seed: int) -> None:
    """Outputs and every gradient of the packed unit are those of its samples one by one in diffusers, in fp32."""
    mine, wanted = run_ours(model, unit), run_theirs(theirs, unit)
    assert (mine - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    push = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(seed))
    (mine * push).sum().backward()
    (wanted * push).sum().backward()
    assert_gradients_equal(model, theirs)


def assert_bfloat16_as_near(units: Iterable[tuple[MMDiTConfig, list[Sample]]]) -> None:
    """In bf16 our outputs and gradients lie as near to the reference's fp32 as its own bf16 does.

    Of one unit's gradients the order of roundings decides: 0.7 to 1.5 times the reference's distance were measured,
    with medians of 60 units from 0.90 (zero_cond_t) to 1.01 (layered); of its output 0.8 to 1.06, 0.87 in the median.
    """
    outputs, gradients = torch.tensor([_distances(*each, seed) for seed, each in enumerate(units)]).T
    assert outputs.median() <= 1.0 and outputs.max() <= 1.25, outputs
    assert gradients.median() <= 1.1 and gradients.max() <= 2.0, gradients


def _distances(config: MMDiTConfig, unit: list[Sample], seed: int) -> tuple[float, float]:
    """How far our bf16 output and gradients are from the reference's fp32, in its own bf16's distances.

    Weights, tokens and sigmas are rounded for all: their rounding would weigh far more than that of the arithmetic.
    """
    theirs = reference(config, seed).bfloat16().float()
    rounded = torch.tensor([sample[3] for sample in unit]).bfloat16().tolist()
    unit = [(g, i.bfloat16().float(), t.bfloat16().float(), s) for (g, i, t, _), s in zip(unit, rounded, strict=True)]
    model = ours(config, theirs).bfloat16()
    exact = _pushed(theirs, run_theirs(theirs, unit), seed)
    theirs.zero_grad()
    peer = _pushed(theirs.bfloat16(), run_theirs(theirs, unit), seed)
    mine = _pushed(model, run_ours(model, unit), seed)
    output, gradients = (
        float((got - want).norm() / (other - want).norm()) for got, other, want in zip(mine, peer, exact, strict=True)
    )
    return output, gradients


def _pushed(model: nn.Module, out: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The output and all gradients, flat by name, of a seeded push on the output; fp32."""
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out.dtype)).sum().backward()
    named = sorted(model.named_parameters())
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in named]
    return out.detach().float(), torch.cat([gradient.flatten().float() for gradient in gradients])


def fill_golden(model: MMDiT) -> None:
    """The weights of the published recipe: 0.3 sin(1.7 n + 2.4 j) for element j of the nth parameter by name."""
    norms = ("norm_q.weight", "norm_k.weight", "norm_added_q.weight", "norm_added_k.weight", "txt_norm.weight")
    with torch.no_grad():
        for n, (name, parameter) in enumerate(sorted(model.named_parameters())):
            j = torch.arange(parameter.numel(), dtype=torch.float64)
            value = 0.3 * torch.sin(1.7 * n + 2.4 * j) + name.endswith(norms)
            parameter.copy_(value.reshape(parameter.shape))


def golden_tokens(config: MMDiTConfig, rows: int) -> tuple[Tensor, Tensor]:
    """The recipe's inputs: `rows` image tokens sin(0.3 + 1.1 k) and five text tokens cos(0.2 + 0.7 k)."""
    image = torch.arange(rows * config.in_channels, dtype=torch.float64).mul(1.1).add(0.3).sin()
    text = torch.arange(5 * config.joint_attention_dim, dtype=torch.float64).mul(0.7).add(0.2).cos()
    return image.float().reshape(rows, -1), text.float().reshape(5, -1)
