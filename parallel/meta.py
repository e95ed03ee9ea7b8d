"""From a model on the meta device, which has shapes and no memory, to one with memory that is not set yet."""

import torch
from torch import nn


def allocate(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give every parameter of `model` memory on `device`, not set.

    torch's own to_empty makes new parameters without what providers and the model have marked on the old ones.
    """
    for module in model.modules():
        for name, old in module.named_parameters(recurse=False):
            new = nn.Parameter(torch.empty(old.shape, dtype=dtype, device=device), requires_grad=old.requires_grad)
            new.__dict__.update(old.__dict__)
            setattr(module, name, new)
