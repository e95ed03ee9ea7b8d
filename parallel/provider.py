"""The MMDiT's layers and token operations on a mesh: megatron-core's tensor-parallel linears, sequence parallel or not.

Answers model/provider.py's Provider. Outside the linears every rank of a tensor-parallel group sees the same tokens, or
with sequence parallelism its own run of them. Where a rank's backward then sees only a part of what a whole weight did,
the weight is marked: its gradient is `partial` and the engine sums it over the group once a step.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parallel.megatron import (
    ColumnParallelLinear,
    ModelParallelConfig,
    RowParallelLinear,
    mappings,
    set_tensor_model_parallel_attributes,
)
from parallel.mesh import Mesh

# The attribute of a parameter whose gradient on a rank is one of the terms of a sum over the tensor-parallel group.
_PARTIAL = "partial_gradient"


def mark_partial(marked: nn.Module | nn.Parameter) -> None:
    """The gradients of `marked`, or of its parameters, are terms of a sum over the tensor-parallel group."""
    for parameter in [marked] if isinstance(marked, nn.Parameter) else marked.parameters():
        setattr(parameter, _PARTIAL, True)


def is_partial(parameter: nn.Parameter) -> bool:
    """True where `mark_partial` has been."""
    return getattr(parameter, _PARTIAL, False)


def mark_split(weight: Tensor, dim: int) -> None:
    """`weight` is this rank's part of a whole one that is split along `dim`."""
    # 0.16 leaves it unmarked without perform_initialization; norms and checkpoints would take it for a whole weight.
    if not hasattr(weight, "tensor_model_parallel"):
        set_tensor_model_parallel_attributes(weight, True, dim, 1)


class ColumnAndBias(ColumnParallelLinear):  # type: ignore[misc]
    """Megatron's column-parallel linear: its product and its bias where it is `apart`, else its output and None."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: ModelParallelConfig,
        *,
        entered: bool,
        mesh: Mesh,
        apart: bool = False,
    ) -> None:
        super().__init__(
            inputs,
            outputs,
            config=config,
            init_method=_never,
            bias=True,
            gather_output=False,
            # The input's gradient was summed where the group of columns was entered.
            disable_grad_reduce=entered,
            skip_bias_add=apart,
            tp_group=mesh.tp_group,
        )
        mark_split(self.weight, dim=0)


class Column(ColumnAndBias):
    """The same, returning its output alone."""

    def forward(self, x: Tensor) -> Tensor:
        output, _ = super().forward(x)
        return output


class Row(RowParallelLinear):  # type: ignore[misc]
    """Megatron's row-parallel linear, returning its output alone."""

    def __init__(self, inputs: int, outputs: int, config: ModelParallelConfig, *, mesh: Mesh) -> None:
        super().__init__(
            inputs,
            outputs,
            config=config,
            init_method=_never,
            bias=True,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=mesh.tp_group,
        )
        mark_split(self.weight, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = super().forward(x)
        return output

    def _forward_impl(self, *args: Any, **kwargs: Any) -> Any:
        # Megatron leaves the group out here and then warns that it is missing.
        return super()._forward_impl(*args, **kwargs | {"tp_group": self.tp_group})


class MegatronProvider:
    """Layers on `mesh` with parameters of `dtype`, unset until someone fills them; norms are one.

    Parameters are made on the mesh's device, or on the meta device inside `with torch.device("meta")`. `bias_apart` is
    whether `column_and_bias` hands its bias out; None does where the device fuses it with what follows, on CUDA.
    """

    def __init__(self, mesh: Mesh, dtype: torch.dtype, *, bias_apart: bool | None = None) -> None:
        self.mesh, self.dtype = mesh, dtype
        self._bias_apart = mesh.device.type == "cuda" if bias_apart is None else bias_apart
        meta = torch.get_default_device().type == "meta"
        self.device = torch.device("meta") if meta else mesh.device
        self.tokens = mesh.tp if mesh.sp else 1
        self._config = ModelParallelConfig(
            tensor_model_parallel_size=mesh.tp,
            sequence_parallel=mesh.sp,
            params_dtype=dtype,
            perform_initialization=False,
            # Megatron's way to say torch's default device; otherwise it names CUDA itself.
            use_cpu_initialization=self.device.type != "cuda",
        )
        # Columns are entered a group at a time, so they themselves communicate no tokens.
        self._entered = copy.copy(self._config)
        self._entered.sequence_parallel = False

    def column(self, inputs: int, outputs: int) -> nn.Module:
        return Column(inputs, outputs, self._entered, entered=True, mesh=self.mesh)

    def column_and_bias(self, inputs: int, outputs: int) -> nn.Module:
        return ColumnAndBias(inputs, outputs, self._entered, entered=True, mesh=self.mesh, apart=self._bias_apart)

    def row(self, inputs: int, outputs: int) -> nn.Module:
        layer = Row(inputs, outputs, self._config, mesh=self.mesh)
        if self.mesh.sp:
            # Added after the sum, to this rank's tokens.
            mark_partial(layer.bias)
        return layer

    def whole(self, inputs: int, outputs: int) -> nn.Module:
        layer = nn.Linear(inputs, outputs, dtype=self.dtype, device=self.device)
        if self.mesh.sp:
            mark_partial(layer)
        return layer

    def modulation(self, inputs: int, outputs: int) -> nn.Module:
        return Column(inputs, outputs, self._entered, entered=False, mesh=self.mesh)

    def head_norm(self, norm: nn.Module) -> nn.Module:
        if self.mesh.tp > 1:
            mark_partial(norm)
        return norm.to(self.device, self.dtype)

    def token_norm(self, norm: nn.Module) -> nn.Module:
        if self.mesh.sp:
            mark_partial(norm)
        return norm.to(self.device, self.dtype)

    def enter(self, x: Tensor) -> Tensor:
        if self.mesh.sp:
            return mappings.gather_from_sequence_parallel_region(x, group=self.mesh.tp_group)
        return mappings.copy_to_tensor_model_parallel_region(x, group=self.mesh.tp_group)

    def gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        if self.mesh.tp == 1:
            return list(parts)
        widths = [part.shape[-1] for part in parts]
        mine = torch.cat(list(parts), dim=-1)
        if self.mesh.sp:
            # Each rank's tokens use every column, so the backward sums over ranks before it splits.
            whole = mappings.all_gather_last_dim_from_tensor_parallel_region(mine, group=self.mesh.tp_group)
        else:
            whole = mappings.gather_from_tensor_model_parallel_region(mine, group=self.mesh.tp_group)
        # [b, rank, columns of every part] to whole parts.
        by_rank = whole.unflatten(-1, (self.mesh.tp, -1)).split(widths, dim=-1)
        return [columns.flatten(-2) for columns in by_rank]

    def shard(self, x: Tensor) -> Tensor:
        return mappings.scatter_to_sequence_parallel_region(x, group=self.mesh.tp_group) if self.mesh.sp else x

    def unshard(self, x: Tensor) -> Tensor:
        if not self.mesh.sp:
            return x
        # What follows is the same on every rank, so each keeps the gradient of its own tokens.
        return mappings.gather_from_sequence_parallel_region(
            x, tensor_parallel_output_grad=False, group=self.mesh.tp_group
        )

    def packed_attention(self, heads: int, head_dim: int) -> Callable[..., Tensor] | None:
        return None


def _never(weight: Tensor) -> None:
    raise AssertionError("layers are filled by name, not by megatron")
