"""One model and one unit for the MMDiT's bench: `python tests/bench/mmdit_case.py CASE WHO` prints its peak memory."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from model.config import MMDiTConfig
from model.layout import Layout
from model.mmdit import MMDiT
from tests.bench.report import peak_growth

MIXED = (512, 221, 69, 39, 94, 65, 242, 46)
CONFIG = MMDiTConfig(
    num_layers=8,
    attention_head_dim=64,
    num_attention_heads=12,
    joint_attention_dim=768,
    axes_dims_rope=(16, 24, 24),
    blocks_per_gather=8,
)


@dataclass(frozen=True)
class Case:
    """A unit: prompt lengths, the side of the target in patches, that of a reference (0: none), and the dtype."""

    prompts: tuple[int, ...]
    side: int
    reference: int = 0
    dtype: torch.dtype = torch.float32
    target: float = 1.0  # the least ratio


CASES = {
    "256p, mixed prompts": Case(MIXED, 16, target=1.8),
    "256p, equal prompts": Case((256,) * 8, 16, target=1.05),
    "640p": Case((242, 94), 40, target=1.0),
    "edit, 256p": Case((221, 94, 65, 242), 16, reference=16, target=1.0),
    "256p, mixed prompts, bf16": Case(MIXED, 16, dtype=torch.bfloat16, target=1.0),
}

Step = Callable[[], None]


def theirs(case: Case) -> tuple[QwenImageTransformer2DModel, Step]:
    """diffusers' module on the unit as its users batch it: padded to the longest prompt; no mask where none pads."""
    torch.manual_seed(0)
    model = QwenImageTransformer2DModel(**CONFIG.released()).to(case.dtype)
    count, most = len(case.prompts), max(case.prompts)
    tokens = case.side**2 + case.reference**2
    image = torch.randn(count, tokens, 64).to(case.dtype)
    text = torch.zeros(count, most, 768, dtype=case.dtype)
    mask = torch.zeros(count, most, dtype=torch.bool)
    for row, length in enumerate(case.prompts):
        text[row, :length] = torch.randn(length, 768)
        mask[row, :length] = True
    shapes = [(1, case.side, case.side)] + [(1, case.reference, case.reference)] * bool(case.reference)

    def step() -> None:
        out = model(
            hidden_states=image,
            encoder_hidden_states=text,
            encoder_hidden_states_mask=None if mask.all() else mask,
            timestep=torch.full((count,), 0.3, dtype=case.dtype),
            img_shapes=[shapes] * count,
            return_dict=False,
        )[0]
        out[:, : case.side**2].float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return model, step


def ours(case: Case, weights: dict[str, Tensor] | None = None) -> tuple[MMDiT, Step]:
    """Our module on the same unit, packed."""
    torch.manual_seed(0)
    model = MMDiT(CONFIG).to(case.dtype)
    if weights:
        model.load_state_dict(weights)
    grids = [(0, case.side, case.side)] + [(1, case.reference, case.reference)] * bool(case.reference)
    layout = Layout.build([grids] * len(case.prompts), case.prompts, CONFIG.axes_dims_rope)
    image = torch.randn(sum(layout.image_lengths), 64).to(case.dtype)
    text = torch.randn(sum(case.prompts), 768).to(case.dtype)
    sigma = torch.full((len(case.prompts),), 0.3)

    def step() -> None:
        model(image, text, sigma, layout).float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return model, step


def peak(case: Case, who: str) -> int:
    """Bytes that a step adds to this process's memory at most, gradients among them."""
    torch.set_num_threads(2)
    model, step = ours(case) if who == "ours" else theirs(case)
    del model
    step()  # what is allocated once is not the step's
    return peak_growth(step)


if __name__ == "__main__":
    print(peak(CASES[sys.argv[1]], sys.argv[2]))
