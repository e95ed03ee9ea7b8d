"""One part of a released Qwen2.5-VL: its weights alone are read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging


class PretrainedError(ValueError):
    """A folder of weights does not hold the part that is wanted."""


def load_part(kind: Any, folder: Path, config: Any, prefix: str, dtype: torch.dtype) -> Any:
    """The module `kind`(`config`) with those weights of `folder` whose names begin with the pattern `prefix`.

    Frozen and in evaluation mode. PretrainedError where weights are missing, which transformers would draw at random.
    """
    with quietly_loading():
        part, found = kind.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            key_mapping={prefix: ""},
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise PretrainedError(f"{folder}: {len(missing)} weights of {kind.__name__} are missing, first {missing[0]}")
    return part.requires_grad_(False).eval()


@contextmanager
def quietly_loading() -> Iterator[None]:
    """Without transformers' progress bar and its report of weights; what is missing is the caller's to look at."""
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
