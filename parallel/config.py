"""Settings of the layout of ranks and of the optimizer: apart from what they set, so that commands that train nothing
read settings without torch.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

if TYPE_CHECKING:
    import torch

_Beta = Annotated[float, Field(ge=0, lt=1)]


class MeshConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """How the job's ranks are laid out; what tensor parallelism leaves over is data parallel."""

    tp: int = Field(default=1, ge=1)  # ranks that split every matrix between them
    sp: bool = (
        False  # sequence parallel: the ranks of a tensor-parallel group also split the tokens between the matrices
    )
    cp: int = Field(default=1, ge=1)  # context parallel
    timeout_s: float = Field(default=600.0, gt=0)  # deadline of every collective
    provider: Literal["megatron", "transformer_engine"] = "megatron"  # whose layers; the second's need CUDA
    fp8: Literal["none", "current", "mxfp8"] = "none"  # of the blocks' matrices, scaled per tensor or per 32 elements

    @field_validator("cp")
    @classmethod
    def _single(cls, cp: int) -> int:
        if cp > 1:
            raise ValueError(f"{cp} ranks would split the tokens of one sample, and attention is per rank; use 1")
        return cp

    @model_validator(mode="after")
    def _split(self) -> "MeshConfig":
        if self.sp and self.tp == 1:
            raise ValueError("mesh.sp: splits tokens over tensor-parallel ranks, and mesh.tp is 1; set it false")
        if self.fp8 != "none" and self.provider != "transformer_engine":
            raise ValueError(f"mesh.fp8: {self.fp8} is Transformer Engine's; set mesh.provider=transformer_engine")
        return self


class OptimConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """AdamW over Megatron's distributed optimizer."""

    lr: float = Field(default=1e-4, gt=0)  # peak; the schedule gives each step's
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)  # decoupled; on matrices alone, not on biases and norms
    clip: float = Field(default=1.0, ge=0)  # largest global gradient norm; 0 clips nothing
    precision: Literal["bf16", "fp32"] = "bf16"  # of the parameters and activations
    overlap_grads: bool = True  # reduce a bucket's gradients while the backward goes on
    overlap_params: bool = True  # gather a bucket's parameters while the forward goes on
    bucket_elements: int = Field(default=40_000_000, ge=1)  # parameters a bucket (Megatron's default up to 40 ranks)

    @model_validator(mode="after")
    def _order(self) -> "OptimConfig":
        if self.overlap_params and not self.overlap_grads:
            raise ValueError("optim.overlap_params: works on the buckets of optim.overlap_grads; set both")
        return self

    @property
    def dtype(self) -> "torch.dtype":
        """The parameters' dtype."""
        import torch

        return {"bf16": torch.bfloat16, "fp32": torch.float32}[self.precision]
