"""The MMDiT's layers and attention as Transformer Engine's, with its fp8 recipes; token operations stay megatron's.

Written from the API of transformer-engine 2.9 and not run so far: there was no CUDA machine with it. The tests give its
attention to a stand-in that checks the arguments. What may change with the first run is here alone.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from parallel.mesh import Mesh, MeshError
from parallel.provider import MegatronProvider, mark_partial, mark_split

try:
    import transformer_engine.pytorch as te  # type: ignore[import-not-found]
    from transformer_engine.common import recipe as recipes  # type: ignore[import-not-found]
except ImportError:  # an extra; parallel/layers.py refuses before anything here is used
    te = recipes = None

_Linear: Any = te.Linear if te else nn.Module

# Both sides of every fp8 matrix must be a multiple: 16 per tensor, 32 in the blocks of mxfp8.
_MULTIPLE = 32
_EPS = 1e-6  # of the released model's norms
_PACKED_DTYPES = (torch.float16, torch.bfloat16)  # of its packed attention (FlashAttention, FusedAttention)


class Linear(_Linear):  # type: ignore[misc]
    """Transformer Engine's linear, in fp8 where it has a recipe; with return_bias its product and its bias."""

    def __init__(self, inputs: int, outputs: int, recipe: Any, amax_group: Any, **kwargs: Any) -> None:
        super().__init__(inputs, outputs, init_method=_leave, **kwargs)
        self.recipe, self.amax_group = recipe, amax_group

    def forward(self, x: Tensor) -> Any:
        if self.recipe is None:
            return super().forward(x)
        with te.autocast(enabled=True, recipe=self.recipe, amax_reduction_group=self.amax_group):
            return super().forward(x)


class TransformerEngineProvider(MegatronProvider):
    """`fp8` is a recipe's name, or none. Only the blocks' own matrices run in fp8.

    Modulation has a row a sample, too few for fp8, and what every rank holds whole is small and left to torch.
    """

    def __init__(self, mesh: Mesh, dtype: torch.dtype, fp8: str) -> None:
        super().__init__(mesh, dtype)
        self._recipe = _recipe(fp8)
        if self._recipe is not None:
            self.tokens = math.lcm(self.tokens, _MULTIPLE)

    def column(self, inputs: int, outputs: int) -> nn.Module:
        # Entered as a group: this rank's part is a linear of its own, without communication.
        return _split(self._linear(inputs, outputs // self.mesh.tp), dim=0)

    def column_and_bias(self, inputs: int, outputs: int) -> nn.Module:
        return _split(self._linear(inputs, outputs // self.mesh.tp, return_bias=True), dim=0)

    def row(self, inputs: int, outputs: int) -> nn.Module:
        layer = _split(self._linear(inputs, outputs, parallel_mode="row", sequence_parallel=self.mesh.sp), dim=1)
        if self.mesh.sp:
            mark_partial(layer.bias)  # added after the sum, to this rank's tokens
        return layer

    def modulation(self, inputs: int, outputs: int) -> nn.Module:
        return _split(self._linear(inputs, outputs, parallel_mode="column", fp8=False), dim=0)

    def token_norm(self, norm: nn.Module) -> nn.Module:
        width = sum(parameter.numel() for parameter in norm.parameters())
        return super().token_norm(te.RMSNorm(width, eps=_EPS, dtype=self.dtype, device=str(self.device)))

    def packed_attention(self, heads: int, head_dim: int) -> Callable[..., Tensor] | None:
        """DotProductAttention on packed rows (thd) of this rank's heads; None in float32, which its fused kernels lack.

        In the parameters' dtype with fp8 too: it runs outside the linears' autocast.
        """
        if self.dtype not in _PACKED_DTYPES:
            return None
        # Read as the module is made; 1 allows kernels whose backward varies from run to run.
        os.environ.setdefault("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
        attention = te.DotProductAttention(
            heads // self.mesh.tp, head_dim, attention_dropout=0.0, qkv_format="thd", attn_mask_type="padding"
        )

        # Given the longest lengths: it would otherwise wait for the device to read them from the starts.
        def attend(
            q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, q_most: int, k_most: int
        ) -> Tensor:
            out: Tensor = attention(
                q, k, v, cu_seqlens_q=q_starts, cu_seqlens_kv=k_starts, max_seqlen_q=q_most, max_seqlen_kv=k_most
            )
            return out

        return attend

    def _linear(
        self, inputs: int, outputs: int, *, fp8: bool = True, return_bias: bool = False, **parallel: Any
    ) -> Linear:
        """A linear of `outputs` by `inputs`, or where `parallel` has a parallel_mode this rank's part of it."""
        recipe = self._recipe if fp8 else None
        if parallel:
            parallel |= {"tp_group": self.mesh.tp_group, "tp_size": self.mesh.tp}
        arguments = parallel | {"params_dtype": self.dtype, "device": str(self.device), "return_bias": return_bias}
        layer = Linear(inputs, outputs, recipe, self.mesh.tp_group, **arguments)
        if recipe is not None and any(side % _MULTIPLE for side in layer.weight.shape):
            raise MeshError(
                f"mesh.fp8: a matrix of this model is {tuple(layer.weight.shape)} on each of {self.mesh.tp} ranks, and "
                f"fp8 takes multiples of {_MULTIPLE}; use a smaller mesh.tp or mesh.fp8=none"
            )
        return layer


def _split(layer: Linear, dim: int) -> Linear:
    mark_split(layer.weight, dim)
    if dim == 0:
        mark_split(layer.bias, 0)
    return layer


def _recipe(fp8: str) -> Any:
    """Transformer Engine's recipe for a setting's name; None for none. None of them carries state over steps."""
    if fp8 == "none":
        return None
    return {"current": recipes.Float8CurrentScaling, "mxfp8": recipes.MXFP8BlockScaling}[fp8]()


def _leave(weight: Tensor) -> None:
    """Weights are filled by name, not here."""
