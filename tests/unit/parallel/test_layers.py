"""Whose layers run, and what is said where they cannot."""

import importlib.util

import pytest
import torch
from pydantic import ValidationError

from parallel.config import MeshConfig
from parallel.layers import check_fp8, check_provider, provider_of
from parallel.mesh import MeshError
from parallel.provider import MegatronProvider
from tests.distributed import tiny

TE = MeshConfig(provider="transformer_engine")
without_te = pytest.mark.skipif(importlib.util.find_spec("transformer_engine") is not None, reason="it is installed")


def test_megatrons_layers_are_the_default() -> None:
    check_provider(MeshConfig())
    here = tiny.mesh(1, False)
    try:
        assert type(provider_of(MeshConfig(), here, torch.float32)) is MegatronProvider
    finally:
        here.close()


@without_te
def test_transformer_engine_is_refused_with_the_way_to_install_it() -> None:
    import parallel.te_provider

    assert issubclass(parallel.te_provider.TransformerEngineProvider, MegatronProvider)
    with pytest.raises(MeshError, match=r"not installed; .* pip install -c constraints\.txt -e '\.\[te\]'"):
        check_provider(TE)
    here = tiny.mesh(1, False)
    try:
        with pytest.raises(MeshError, match="not installed"):
            provider_of(TE, here, torch.float32)
    finally:
        here.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_transformer_engine_is_refused_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(MeshError, match=r"needs CUDA, and there is none; set mesh\.provider=megatron"):
        check_provider(TE)


@pytest.mark.parametrize(
    ("recipe", "capability", "said"),
    [
        ("current", (8, 0), "current needs compute capability 8.9, this device has 8.0; use none"),
        ("mxfp8", (9, 0), "mxfp8 needs compute capability 10.0, this device has 9.0; use none or current"),
        ("mxfp8", (8, 6), "mxfp8 needs compute capability 10.0, this device has 8.6; use none"),
    ],
)
def test_fp8_is_refused_where_the_device_has_none(recipe: str, capability: tuple[int, int], said: str) -> None:
    with pytest.raises(MeshError) as refused:
        check_fp8(recipe, capability)
    assert str(refused.value) == f"mesh.fp8: {said}"


@pytest.mark.parametrize(("recipe", "capability"), [("current", (8, 9)), ("current", (9, 0)), ("mxfp8", (10, 0))])
def test_fp8_runs_where_the_device_has_it(recipe: str, capability: tuple[int, int]) -> None:
    check_fp8(recipe, capability)


def test_fp8_is_refused_with_megatrons_layers() -> None:
    with pytest.raises(ValidationError, match=r"mesh\.fp8: current is Transformer Engine's; set mesh\.provider"):
        MeshConfig(fp8="current")
