"""Ours and diffusers' transformer on the same weights and samples."""

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from model.layout import Layout
from model.mmdit import MMDiT, MMDiTConfig

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
    known = config.model_dump(exclude={"blocks_per_gather"})
    theirs = QwenImageTransformer2DModel(**known)
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


def samples(config: MMDiTConfig, seed: int, count: int) -> list[Sample]:
    """Samples of mixed picture sizes, odd sides among them, and mixed prompt lengths."""
    g = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    made = []
    for _ in range(count):
        grid = (0, number(1, 7), number(1, 7))
        image = torch.randn(grid[1] * grid[2], config.in_channels, generator=g)
        text = torch.randn(number(1, 11), config.joint_attention_dim, generator=g)
        made.append(([grid], image, text, float(torch.rand((), generator=g))))
    return made


def run_ours(model: MMDiT, unit: list[Sample]) -> Tensor:
    """The unit packed: velocity [i, 4 c]."""
    layout = Layout.build([s[0] for s in unit], [len(s[2]) for s in unit], model.config.axes_dims_rope)
    dtype = model.proj_out.weight.dtype
    image, text = torch.cat([s[1] for s in unit]).to(dtype), torch.cat([s[2] for s in unit]).to(dtype)
    return model(image, text, torch.tensor([s[3] for s in unit]), layout)


def run_theirs(model: QwenImageTransformer2DModel, unit: list[Sample]) -> Tensor:
    """The same samples one by one, as diffusers takes them without padding."""
    dtype = model.proj_out.weight.dtype
    outputs = [
        model(
            hidden_states=image[None].to(dtype),
            encoder_hidden_states=text[None].to(dtype),
            encoder_hidden_states_mask=None,
            timestep=torch.tensor([sigma], dtype=dtype),
            img_shapes=[[(1, height, width) for _, height, width in grids]],
            return_dict=False,
        )[0][0]
        for grids, image, text, sigma in unit
    ]
    return torch.cat(outputs)
