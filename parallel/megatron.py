"""Where megatron-core is imported, and nowhere else: the names this package uses, without its import-time noise.

Works with megatron-core 0.16 (the last for Python 3.11) to 0.19.
"""

import warnings
from types import ModuleType

import torch.distributed as dist

with warnings.catch_warnings():
    # Transformer Engine and Apex are optional; megatron says so once a file.
    warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed", category=UserWarning)
    # Its own deprecated imports, and torch.jit inside the compiler stack it pulls in.
    warnings.filterwarnings("ignore", message="The following imports from", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
    from megatron.core import ModelParallelConfig, parallel_state
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        param_and_grad_buffer,
    )
    from megatron.core.optimizer import Adam
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.core.optimizer.optimizer_config import OptimizerConfig
    from megatron.core.tensor_parallel import layers, mappings
    from megatron.core.tensor_parallel.layers import (
        ColumnParallelLinear,
        RowParallelLinear,
        set_tensor_model_parallel_attributes,
    )


def _rename_collectives(module: ModuleType) -> None:
    """Point `module` at the names that torch 2.13 gave two collectives; the old ones warn at every first use."""
    for bound, name in (
        ("dist_all_gather_func", "all_gather_single"),
        ("dist_reduce_scatter_func", "reduce_scatter_single"),
    ):
        if hasattr(module, bound) and hasattr(dist, name):
            setattr(module, bound, getattr(dist, name))


for _module in (layers, mappings, param_and_grad_buffer):
    _rename_collectives(_module)

__all__ = [
    "Adam",
    "ColumnParallelLinear",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "DistributedOptimizer",
    "ModelParallelConfig",
    "OptimizerConfig",
    "RowParallelLinear",
    "mappings",
    "parallel_state",
    "set_tensor_model_parallel_attributes",
]
