"""How much of something a device has memory for, by trying."""

from collections.abc import Callable

import torch


def most(wanted: int, run: Callable[[int], object]) -> int:
    """`wanted`, halved until `run` has memory for it; 0 where it has none for one."""
    fits = wanted
    while fits and not _has_memory(run, fits):
        fits //= 2
    return fits


def _has_memory(run: Callable[[int], object], count: int) -> bool:
    try:
        run(count)
    except torch.OutOfMemoryError:
        return False
    finally:
        # What the probe took is of other sizes than units will ask for.
        torch.cuda.empty_cache()
    return True
