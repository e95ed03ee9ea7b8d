"""The small model, units and layouts that the tests on several ranks train."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from model.config import MMDiTConfig
from model.layout import Layout
from model.mmdit import MMDiT
from parallel.config import MeshConfig, OptimConfig
from parallel.engine import Engine
from parallel.mesh import Mesh
from parallel.place import place
from parallel.provider import MegatronProvider

CONFIG = MMDiTConfig(
    in_channels=16,
    out_channels=4,
    num_layers=3,
    attention_head_dim=16,
    num_attention_heads=4,
    joint_attention_dim=24,
    axes_dims_rope=(8, 4, 4),
    blocks_per_gather=2,
)

# Six heads go onto three ranks. Edit weights modulate references on their own, layered ones know a class a sample.
MODELS = {
    "text": CONFIG,
    "edit": CONFIG.model_copy(update={"num_attention_heads": 6, "zero_cond_t": True}),
    "layered": CONFIG.model_copy(
        update={"num_attention_heads": 6, "use_layer3d_rope": True, "use_additional_t_cond": True}
    ),
}

# The first model's width is 64: buckets of this many elements are a few matrices each.
BUCKET = 20_000

# (ranks, tensor parallel, sequence parallel)
LAYOUTS = [(1, 1, False), (2, 2, False), (2, 2, True), (4, 2, False), (4, 2, True), (4, 4, False), (4, 4, True)]
UNITS = 4  # units a step, dealt to the data-parallel ranks


def mesh(tp: int, sp: bool) -> Mesh:
    """This rank's mesh."""
    return Mesh.start(MeshConfig(tp=tp, sp=sp, timeout_s=30))


def optim(precision: str = "fp32", overlap: bool = True, **over: object) -> OptimConfig:
    """AdamW's settings of these tests."""
    base = {"precision": precision, "overlap_grads": overlap, "overlap_params": overlap, "bucket_elements": BUCKET}
    return OptimConfig(**base | over)


def build(weights: Path, here: Mesh, config: OptimConfig, sizes: MMDiTConfig = CONFIG) -> Engine:
    """An engine whose model has the whole weights in the file at `weights`."""
    model = MMDiT(sizes, MegatronProvider(here, config.dtype))
    whole = load_file(weights)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            part = place(parameter, here)
            parameter.copy_(whole[name] if part is None else part.of(whole[name]))
    return Engine(model, config, here)


def unit_loss(model: nn.Module, step: int, unit: int) -> tuple[Tensor, int]:
    """The summed loss of a unit of 1 to 3 samples of mixed sizes, and how many they are."""
    g = torch.Generator().manual_seed(1000 * step + unit)
    count = 1 + (step + unit) % 3
    grids = [[(0, *torch.randint(1, 8, (2,), generator=g).tolist())] for _ in range(count)]
    lengths = torch.randint(1, 12, (count,), generator=g).tolist()
    image = torch.randn(sum(h * w for ((_, h, w),) in grids), CONFIG.in_channels, generator=g)
    text = torch.randn(sum(lengths), CONFIG.joint_attention_dim, generator=g)
    target = torch.randn(image.shape, generator=g)
    sigma = torch.rand(count, generator=g)
    layout = Layout.build(grids, lengths, CONFIG.axes_dims_rope)
    dtype = next(model.parameters()).dtype
    error = (model(image.to(dtype), text.to(dtype), sigma, layout).float() - target).square().mean(-1)
    return torch.stack([part.mean() for part in error.split(list(layout.target_lengths))]).sum(), count


def backward(engine: Engine, step: int) -> tuple[float, int]:
    """The backward passes of `step`, up to finished gradients: mean loss and number of samples over all ranks."""
    here = engine.mesh
    units = range(here.dp_rank, UNITS, here.dp)
    totals = torch.zeros(2, dtype=torch.float64)
    engine.zero_grad()
    for unit in units[:-1]:
        with engine.no_sync():
            loss, count = unit_loss(engine.module, step, unit)
            loss.backward()
        totals += torch.tensor([loss.item(), count])
    loss, count = unit_loss(engine.module, step, units[-1])
    loss.backward()
    totals += torch.tensor([loss.item(), count])
    loss_sum, samples = here.sum(totals).tolist()
    engine.finish(samples)
    return loss_sum / samples, int(samples)
