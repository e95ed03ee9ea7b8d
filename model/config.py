"""Settings of the model and its objective: apart from what they set, so that commands that train nothing read settings
without torch.
"""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"{name!r} is no device; use cpu, cuda or cuda:1")
    return name


Device = Annotated[str, AfterValidator(_device)]

# samples: torch's SDPA a sample at a time, on every device. masked: one SDPA over all pairs of tokens of the unit,
# those of two samples masked; its cost grows with the square of the unit, so it is a twin to check by. varlen: torch's
# flash kernel for packed samples, CUDA and 16-bit alone. auto: the kernel of the layers' provider where it has one,
# else varlen where it runs, else samples.
Backend = Literal["auto", "samples", "masked", "varlen"]

# What is made again. norm: the modulated tokens that columns read (gathered again under sequence parallelism). gelu:
# what the MLP's second product reads. core: normed and turned heads, and attention from them. attention and mlp: all
# from the block's tokens up to the last product. block: all of it.
Part = Literal["norm", "gelu", "core", "attention", "mlp", "block"]
Parts = frozenset[Part]

KEEP: Parts = frozenset()

# Settings of how the model runs; all others are of the weights, as in the released config.json.
_RUN = frozenset({"attention", "blocks_per_gather"})

# In the first released config.json and read by no one: the reference never built that part.
_UNREAD = "pooled_projection_dim"


class MMDiTConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """Sizes and flags, named as in the released config.json; the defaults are the released 20B model's."""

    patch_size: int = Field(default=2, ge=1)
    in_channels: int = 64  # latent channels * patch_size squared
    out_channels: int = 16
    num_layers: int = Field(default=60, ge=1)
    attention_head_dim: int = Field(default=128, ge=1)
    num_attention_heads: int = Field(default=24, ge=1)
    joint_attention_dim: int = Field(default=3584, ge=1)  # width of the prompt encoder
    axes_dims_rope: tuple[int, int, int] = (16, 56, 56)
    guidance_embeds: bool = False  # no released weights have them, and the reference builds none
    zero_cond_t: bool = False  # Edit-2511: references are modulated as at sigma 0
    use_layer3d_rope: bool = False  # Layered: frames by layer, the condition at -1
    use_additional_t_cond: bool = False  # Layered: a class a sample is added to its timestep's embedding
    attention: Backend = "auto"  # attention.py
    blocks_per_gather: int = Field(default=10, ge=1)  # blocks whose modulation is gathered in one collective

    @model_validator(mode="after")
    def _fits(self) -> "MMDiTConfig":
        wrong = any(dims % 2 or dims < 2 for dims in self.axes_dims_rope)
        if wrong or sum(self.axes_dims_rope) != self.attention_head_dim:
            raise ValueError(
                f"model.axes_dims_rope: {self.axes_dims_rope} must be even, above 0 and sum to "
                f"attention_head_dim {self.attention_head_dim}; they sum to {sum(self.axes_dims_rope)}"
            )
        if self.in_channels != self.out_channels * self.patch_size**2:
            raise ValueError(
                f"model.in_channels: {self.in_channels} must be out_channels {self.out_channels} * patch_size "
                f"{self.patch_size} squared, {self.out_channels * self.patch_size**2}"
            )
        if self.guidance_embeds:
            raise ValueError("model.guidance_embeds: true, but the reference has no such layer; set it to false")
        if self.zero_cond_t and self.use_layer3d_rope:
            raise ValueError(
                "model.zero_cond_t: true with use_layer3d_rope true; no weights have both, and the reference would "
                "take every layer but the first for a condition; set one to false"
            )
        return self

    @classmethod
    def from_released(cls, text: str) -> "MMDiTConfig":
        """The settings in the `text` of a released config.json; names with a leading _ describe the file.

        Raises ValueError on what this model does not do.
        """
        said = json.loads(text)
        if isinstance(said, dict):
            said = {name: value for name, value in said.items() if name[:1] != "_" and name != _UNREAD}
        return cls.model_validate_json(json.dumps(said))

    def released(self) -> dict[str, Any]:
        """The settings that config.json has, as the arguments of diffusers' QwenImageTransformer2DModel."""
        return self.model_dump(exclude=set(_RUN))

    @property
    def width(self) -> int:
        return self.attention_head_dim * self.num_attention_heads


class RecomputeError(ValueError):
    """The settings name blocks that the model does not have."""


class RecomputeConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """Which parts of which blocks: every `every`-th block of `blocks`, ranges [first, stop); without ranges, of all."""

    parts: tuple[Part, ...] = ()  # none: everything is kept
    every: int = Field(default=1, ge=1)
    blocks: tuple[tuple[int, int], ...] = ()

    @model_validator(mode="after")
    def _ordered(self) -> "RecomputeConfig":
        before = 0
        for first, stop in self.blocks:
            if not before <= first < stop:
                raise ValueError(
                    f"recompute.blocks: [{first}, {stop}] after block {before}; give ranges [first, stop) that grow "
                    "and do not overlap"
                )
            before = stop
        return self

    def of(self, layers: int) -> list[Parts]:
        """The parts of each of `layers` blocks. Raises RecomputeError for blocks beyond them."""
        if self.blocks and self.blocks[-1][1] > layers:
            raise RecomputeError(
                f"recompute.blocks: {list(self.blocks[-1])} ends beyond the model's {layers} blocks; end at {layers}"
            )
        ranges = self.blocks or ((0, layers),)
        chosen = [block for first, stop in ranges for block in range(first, stop)][:: self.every]
        return [frozenset(self.parts if block in set(chosen) else ()) for block in range(layers)]


class FlowConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """How a sample's noise level, noise and condition are drawn, and what its error weighs."""

    density: Literal["logit_normal", "uniform", "mode", "beta"] = "logit_normal"  # the report's, without its numbers
    mean: float = 0.0  # logit_normal: of the logit
    std: float = Field(default=1.0, gt=0)
    mode_scale: float = Field(default=1.29, ge=-1, le=1.75)  # mode: s of arXiv 2403.03206 equation 20
    alpha: float = Field(default=2.0, gt=0)  # beta: of sigma
    beta: float = Field(default=2.0, gt=0)
    # A shift of sigma in training, which the report does not mention: dynamic is inference's, by target tokens.
    shift: Literal["none", "fixed", "dynamic"] = "none"
    fixed_shift: float = Field(default=1.0, gt=0)  # exp(mu) of the fixed shift
    terminal: float = Field(default=0.0, ge=0, lt=1)  # least sigma after a shift; the released scheduler's is 0.02
    # none; sigma^-2 and cosmap (arXiv 2403.03206, as diffusers computes them); bell (DiffSynth-Studio's)
    weight: Literal["none", "sigma_sqrt", "cosmap", "bell"] = "none"
    posterior: Literal["mean", "sample"] = "sample"  # of the VAE, for targets
    prompt_dropout: float = Field(default=0.1, ge=0, lt=1)  # trained on the empty prompt (Qwen-Image-2.0)

    @model_validator(mode="after")
    def _stretches_a_shift(self) -> "FlowConfig":
        if self.terminal and self.shift == "none":
            raise ValueError(f"flow.terminal: {self.terminal} belongs to a shift, and flow.shift is none; set one or 0")
        return self

    @model_validator(mode="after")
    def _takes_effect(self) -> "FlowConfig":
        for setting, kind, names in (
            ("density", "logit_normal", ("mean", "std")),
            ("density", "mode", ("mode_scale",)),
            ("density", "beta", ("alpha", "beta")),
            ("shift", "fixed", ("fixed_shift",)),
        ):
            chosen = getattr(self, setting)
            for name in names:
                value = getattr(self, name)
                if chosen != kind and value != type(self).model_fields[name].default:
                    raise ValueError(
                        f"flow.{name}: {value} changes nothing while flow.{setting} is {chosen}; "
                        f"set flow.{setting}={kind}, or leave it out"
                    )
        return self
