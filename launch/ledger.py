"""Bytes alive, counted while a model runs on tensors without memory (torch's meta or fake ones): every storage once.

What autograd keeps, what a backward needs beside it, and what crosses the tensor-parallel group are then those of the
real code and not of formulas about it.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

# What the CUDA allocator rounds a block up to (c10/cuda/CUDACachingAllocator.h, kMinBlockSize).
_BLOCK = 512

# Collectives by the name of their operator: what they are called, and which argument holds the whole tensor.
_COLLECTIVES = {
    "allreduce_": ("all-reduce", 0),
    "_allgather_base_": ("all-gather", 0),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
}

OTHER = "activations"


class Ledger(TorchDispatchMode):
    """Enter it around the run. `now` and `peak` are bytes of what was made inside and is alive; by tag too.

    `flops` are those of the matrix products that ran, as `flops_of` says or else torch counts them. `traffic` holds the
    bytes of the whole tensor of each collective.
    """

    def __init__(self, flops_of: Callable[[Any, tuple[Any, ...]], int | None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.flops = 0
        self.by_tag: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self.traffic: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._tag, self._known, self._flops_of = OTHER, set[int](), flops_of

    @contextmanager
    def tagged(self, tag: str) -> Iterator[None]:
        """What is made inside counts under `tag`."""
        before, self._tag = self._tag, tag
        try:
            yield
        finally:
            self._tag = before

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """These are not counted, nor are views of them."""
        self._known.update(tensor.untyped_storage()._cdata for tensor in tensors)

    def restart(self) -> None:
        """The peak is what is alive now."""
        self.peak, self.at_peak = self.now, Counter(self.by_tag)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [item for item in tree_iter((args, kwargs)) if isinstance(item, Tensor)]
        if given and not any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in given):
            with unset_fake_temporarily():  # owners of rows are values that the model reads
                return func(*args, **(kwargs or {}))
        if func is torch.ops.aten.is_set_to.default:  # has no form without memory
            return _same(*args)
        out = func(*args, **(kwargs or {}))
        self._count(func, args, kwargs or {}, out)
        for item in tree_iter(out):
            if isinstance(item, Tensor):
                self._note(item)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or not storage.nbytes():
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self._known.add(key)
        self.now += size
        self.by_tag[self._tag] += size
        weakref.finalize(storage, self._gone, key, size, self._tag).atexit = False
        if self.now > self.peak:
            self.restart()

    def _gone(self, key: int, size: int, tag: str) -> None:
        self._known.discard(key)
        self.now -= size
        self.by_tag[tag] -= size

    def _count(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if func.namespace == "c10d":
            name, whole = _COLLECTIVES[func._opname]
            tensors = args[whole] if isinstance(args[whole], list | tuple) else [args[whole]]
            self.traffic[name] += sum(tensor.nbytes for tensor in tensors)
            self.calls[name] += 1
        elif (said := self._flops_of(func, args)) is not None:
            self.flops += said
        elif func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether both are the same view of the same storage."""
    if one.untyped_storage()._cdata != other.untyped_storage()._cdata:
        return False
    return (one.storage_offset(), one.shape, one.stride()) == (other.storage_offset(), other.shape, other.stride())
