"""What lets megatron-core train where there is no CUDA: its layers, DDP and optimizer then run on gloo ranks.

Megatron places its buffers on `torch.cuda.current_device()`, its scalars on the literal "cuda", and tells precisions
apart by the name of the tensor type. Here those mean the CPU. Nothing of this is entered where there is CUDA.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")


class _CudaIsCpu(TorchFunctionMode):
    """Tensors asked for on CUDA are made on the CPU, and `Tensor.type()` names the CUDA type."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func is torch.Tensor.type and len(args) == 1 and not named:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if func is torch.Tensor.cuda:
            return args[0]
        if str(named.get("device")).startswith("cuda"):
            named["device"] = _CPU
        return func(*args, **named)


class _Stream:
    """A stream on the CPU: everything is already in order."""

    def wait_stream(self, stream: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None: ...


def needed() -> bool:
    """True where there is no CUDA."""
    return not torch.cuda.is_available()


def install() -> None:
    """Once a process, before layers are made: the current CUDA device is the CPU. Does nothing where there is CUDA."""
    if not needed():
        return
    stream = _Stream()
    torch.cuda.current_device = lambda: _CPU  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda device=None: None
    # From 0.17 on DDP and the optimizer order their work on the current stream.
    torch.cuda.current_stream = lambda device=None: stream  # type: ignore[assignment, return-value]


def stand_in() -> AbstractContextManager[object]:
    """Around calls of megatron's optimizer, the one part with a literal "cuda"; empty where there is CUDA."""
    return _CudaIsCpu() if needed() else nullcontext()
