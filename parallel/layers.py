"""Whose layers a model is made of: megatron-core's own or Transformer Engine's, as the settings say."""

import importlib.util

import torch

from parallel.config import MeshConfig
from parallel.mesh import Mesh, MeshError
from parallel.provider import MegatronProvider

# The least compute capability that runs each fp8 recipe (Transformer Engine user guide, low precision training).
_CAPABILITY = {"current": (8, 9), "mxfp8": (10, 0)}


def provider_of(config: MeshConfig, mesh: Mesh, dtype: torch.dtype) -> MegatronProvider:
    """The provider that `config` names. Raises MeshError where it cannot run."""
    if config.provider == "megatron":
        return MegatronProvider(mesh, dtype)
    check_provider(config)
    # Not above: Transformer Engine is an extra.
    from parallel.te_provider import TransformerEngineProvider

    return TransformerEngineProvider(mesh, dtype, config.fp8)


def check_provider(config: MeshConfig) -> None:
    """Refuse layers that cannot run on this machine; MeshError says why and what can be done."""
    if config.provider == "megatron":
        return
    if importlib.util.find_spec("transformer_engine") is None:
        raise MeshError(
            "mesh.provider: transformer_engine is not installed; on a machine with CUDA run "
            "pip install -c constraints.txt -e '.[te]', or set mesh.provider=megatron"
        )
    if not torch.cuda.is_available():
        raise MeshError("mesh.provider: transformer_engine needs CUDA, and there is none; set mesh.provider=megatron")
    if config.fp8 != "none":
        check_fp8(config.fp8, torch.cuda.get_device_capability())


def check_fp8(recipe: str, capability: tuple[int, int]) -> None:
    """Refuse an fp8 recipe on a device of a lower compute capability than it needs."""
    least = _CAPABILITY[recipe]
    if capability < least:
        other = " or current" if recipe == "mxfp8" and capability >= _CAPABILITY["current"] else ""
        raise MeshError(
            f"mesh.fp8: {recipe} needs compute capability {least[0]}.{least[1]}, this device has "
            f"{capability[0]}.{capability[1]}; use none{other}"
        )
