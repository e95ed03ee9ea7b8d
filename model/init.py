"""Initial weights, the same whatever ranks hold them: each whole tensor is drawn from its own name, then cut.

The report does not state its initialisation. Ours is the one DiTs are trained with (arXiv 2212.09748): linears Xavier
uniform with zero bias, timestep embedding normal(0.02), and everything that modulates or ends the network zero, so that
each block starts as the identity.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.config import MMDiTConfig
from model.mmdit import MMDiT
from model.provider import Plain

# Where a rank's slice of a parameter lies: (dim, start, stop), None where it holds the whole.
Place = Callable[[nn.Parameter], tuple[int, int, int] | None]


def shapes(config: MMDiTConfig) -> dict[str, torch.Size]:
    """Every parameter's name and whole shape, without memory for any."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in MMDiT(config, Plain()).named_parameters()}


@torch.no_grad()
def fill(model: MMDiT, seed: int, place: Place = lambda parameter: None) -> None:
    """Set every parameter of `model`, or this rank's slices of them, to its initial value."""
    whole = shapes(model.config)
    for name, parameter in model.named_parameters():
        value, cut = draw(name, whole[name], seed), place(parameter)
        parameter.copy_(value if cut is None else value.narrow(cut[0], cut[1], cut[2] - cut[1]))


def draw(name: str, shape: torch.Size, seed: int) -> Tensor:
    """The initial value in fp32 of the parameter called `name`."""
    if name.endswith("bias") or "_mod." in name or name.startswith(("norm_out.", "proj_out.")):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    generator = torch.Generator().manual_seed(seed_of(seed, name))
    if name.startswith("time_text_embed."):
        return torch.randn(shape, generator=generator) * 0.02
    bound = (6 / (shape[0] + shape[1])) ** 0.5
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound


def seed_of(*parts: object) -> int:
    """A 63-bit seed from whatever names a draw; the same on every machine."""
    digest = hashlib.blake2b("/".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
