"""These tests need a CUDA device; without one nothing is run, and that is said, not passed over."""

import pytest
import torch


def pytest_collection_modifyitems() -> None:
    if not torch.cuda.is_available():
        pytest.exit("make gpu: no CUDA device on this machine, nothing was run; use one with an NVIDIA GPU", 1)
