"""What the MMDiT asks of whoever builds its layers, and the plain answer: torch's own, on one device.

The MMDiT never knows how it is spread. A provider hands it layers (each returns one tensor, but for `column_and_bias`,
and keeps its weights as `weight` and `bias`) and the operations between them on packed tokens [rows, width]. A weight
is read only in its own module's forward, or handed out by it: overlapped parameter gathers fill it just before that.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

# Attention of packed samples, each within itself, in one kernel: from q [n, h, k], k and v [m, h, k], where each
# sample's rows start in q and in k and where the last one's end ([b + 1] int32 each), and the most rows of a sample in
# q and in k, to [n, h, k] or [n, h * k]. Scale 1 / sqrt(k), no mask within a sample.
Packed = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor]


class Provider(Protocol):
    """Layers and token operations. `tokens`: the rows of each stream are padded to a multiple of this."""

    tokens: int

    def column(self, inputs: int, outputs: int) -> nn.Module:
        """A linear whose output is split over ranks; its input has been entered."""

    def column_and_bias(self, inputs: int, outputs: int) -> nn.Module:
        """A column linear that returns its product and the bias still to be added, None where it has been added."""

    def row(self, inputs: int, outputs: int) -> nn.Module:
        """A linear whose input is split over ranks; its output is summed, this rank's tokens."""

    def whole(self, inputs: int, outputs: int) -> nn.Module:
        """A linear that every rank holds whole and applies to its own tokens."""

    def modulation(self, inputs: int, outputs: int) -> nn.Module:
        """A linear on the timestep embedding [b, inputs]; its output is split over ranks until `gather`."""

    def head_norm(self, norm: nn.Module) -> nn.Module:
        """`norm`, whose weight is whole while the heads that it acts on are split over ranks."""

    def token_norm(self, norm: nn.Module) -> nn.Module:
        """`norm`, which acts on this rank's tokens."""

    def enter(self, x: Tensor) -> Tensor:
        """This rank's tokens [rows, d] to the tokens that a group of column linears reads, once a group."""

    def gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of modulation linears, this rank's columns, to whole ones, in one collective."""

    def shard(self, x: Tensor) -> Tensor:
        """Whole tokens (or their indices) to this rank's."""

    def unshard(self, x: Tensor) -> Tensor:
        """This rank's tokens to whole ones."""

    def packed_attention(self, heads: int, head_dim: int) -> Packed | None:
        """Its own attention, of a model of `heads` heads, on this rank's; None leaves it to attention.py."""


class LinearAndBias(nn.Linear):
    """A linear that returns its product and its bias where it is `apart`, else its output and None.

    Where `apart` is None the device decides: on the CPU the product adds its bias for nothing, on CUDA what follows it.
    """

    def __init__(self, inputs: int, outputs: int, apart: bool | None = None) -> None:
        super().__init__(inputs, outputs)
        self.apart = apart

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        apart = x.device.type != "cpu" if self.apart is None else self.apart
        return (F.linear(x, self.weight), self.bias) if apart else (super().forward(x), None)


class Plain:
    """One device: torch's linears, and nothing between them. `bias_apart`: as LinearAndBias has it."""

    tokens = 1

    def __init__(self, bias_apart: bool | None = None) -> None:
        self._bias_apart = bias_apart

    def column(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Linear(inputs, outputs)

    row = whole = modulation = column

    def column_and_bias(self, inputs: int, outputs: int) -> nn.Module:
        return LinearAndBias(inputs, outputs, self._bias_apart)

    def head_norm(self, norm: nn.Module) -> nn.Module:
        return norm

    token_norm = head_norm

    def enter(self, x: Tensor) -> Tensor:
        return x

    shard = unshard = enter

    def gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return list(parts)

    def packed_attention(self, heads: int, head_dim: int) -> Packed | None:
        return None
