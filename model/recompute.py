"""What a training forward does not keep and the backward computes again: memory for time, at the same bits.

A region is a run of operations that keeps its inputs alone. Unlike torch's checkpoint it also takes back what the
layers after it keep of its output. So a region may end before a row linear, whose input is then made again while its
product is not: of an MLP the backward repeats one of two products, of attention three of four, and under tensor
parallelism no reduction. (torch's checkpoint ends there too, but only with torch's own linears: it stops once all that
was kept is back, and a linear that is one autograd function, as Megatron's, keeps its input when it is done.)

Nothing is drawn in a forward, so no random state is kept. The graph is that of a forward without regions: gradients
are summed in the same order, hooks of parameters run once, and modules are called again as modules.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

Result = TypeVar("Result")
Made = tuple[Tensor | None, ...]


def again(redo: bool, function: Callable[[], Made], into: Callable[..., Result]) -> Result:
    """`into` of what `function` makes. With `redo` and gradients on, the backward makes again what they keep of that.

    `function` must be the same each time. What `into` keeps beside its arguments stays kept.
    """
    if not (redo and torch.is_grad_enabled()):
        return into(*function())
    region = _Region(function)
    return region.read(region.run(), into)


class _Region:
    """A function whose autograd nodes keep numbers: of what they keep themselves, in order, then of what readers do."""

    def __init__(self, function: Callable[[], Made]) -> None:
        self._function = function
        self._own = 0
        self._read: list[int] = []  # the output that each reader's number stands for
        self._made: dict[int, Tensor] = {}

    def run(self) -> Made:
        """The function's result, of which its nodes keep nothing."""

        def number(tensor: Tensor) -> object:
            if isinstance(tensor, nn.Parameter):
                return tensor  # lives anyway
            self._own += 1
            return self._own - 1

        with saved_tensors_hooks(number, self._take):
            return self._function()

    def read(self, outputs: Made, into: Callable[..., Result]) -> Result:
        """`into(*outputs)`, which keeps none of `outputs`."""
        known = list(outputs)

        def number(tensor: Tensor) -> object:
            for index, output in enumerate(known):
                if output is not None and _same(tensor, output):
                    self._read.append(index)
                    return self._own + len(self._read) - 1
            return tensor

        with saved_tensors_hooks(number, self._take):
            result = into(*outputs)
        known.clear()  # the hooks live as long as the graph
        return result

    def _take(self, kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if kept not in self._made:
            self._again()
        return self._made.pop(kept)

    def _again(self) -> None:
        own: list[Tensor] = []

        def keep(tensor: Tensor) -> None:
            if not isinstance(tensor, nn.Parameter):
                own.append(tensor.detach())  # or it would hold the graph that holds it

        with torch.enable_grad(), saved_tensors_hooks(keep, _never):
            outputs = self._function()
        assert len(own) == self._own, f"kept {self._own} tensors at first, {len(own)} when run again"
        read = {self._own + n: outputs[index] for n, index in enumerate(self._read)}
        self._made = dict(enumerate(own)) | {n: out.detach() for n, out in read.items() if out is not None}


def _same(one: Tensor, other: Tensor) -> bool:
    """True for the same elements in the same memory; Tensor.is_set_to, which fake and meta tensors lack."""
    return (
        one.untyped_storage()._cdata == other.untyped_storage()._cdata
        and one.storage_offset() == other.storage_offset()
        and one.shape == other.shape
        and one.stride() == other.stride()
    )


def _never(kept: object) -> Tensor:
    raise AssertionError("the graph of a second run has no backward")
