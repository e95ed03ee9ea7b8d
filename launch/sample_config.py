"""What to sample from a trained model."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, model_validator

from model.config import Device
from producer.api.bucket import MULTIPLE, Bucket, parse


class SampleConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """Every prompt is drawn at every size; picture k of the grid starts from the noise of seed + k."""

    prompts: tuple[str, ...] = (
        "An astronaut in an orange space suit smiles at the camera.",
        "A cup of coffee on a saucer, with a spoon.",
        "The face of a cat with green eyes.",
        "红色背景上写着白色的字：“你好”",
    )
    negative: str = " "  # the prompt that guidance leads away from; the released model's default
    cfg_scale: float = Field(default=4.0, ge=0)  # at 1 or less there is no guidance
    steps: int = Field(default=50, ge=1)
    sizes: tuple[str, ...] = ("256x256",)  # HEIGHTxWIDTH in pixels
    seed: int = Field(default=0, ge=0)
    batch: int = Field(default=8, ge=1)  # pictures sampled together
    device: Device = "cpu"  # or cuda
    dtype: Literal["float32", "bfloat16"] = "float32"
    font: Path | None = None  # for the captions; by default one with Chinese glyphs, where there is one

    @model_validator(mode="after")
    def _drawable(self) -> "SampleConfig":
        if not self.prompts or not self.sizes:
            raise ValueError("sample.prompts, sample.sizes: give at least one of each")
        for size in self.sizes:
            height, cross, width = size.partition("x")
            if not (cross and height.isdecimal() and width.isdecimal()):
                raise ValueError(f"sample.sizes: {size!r}; write sizes as HEIGHTxWIDTH in pixels, like 256x320")
            if int(height) % MULTIPLE or int(width) % MULTIPLE or not int(height) or not int(width):
                raise ValueError(f"sample.sizes: {size}; both sides must be positive multiples of {MULTIPLE}")
        return self

    @property
    def pictures(self) -> list[tuple[str, Bucket]]:
        """Each picture's prompt and size, a row of sizes for every prompt."""
        return [(prompt, parse(size)) for prompt in self.prompts for size in self.sizes]
