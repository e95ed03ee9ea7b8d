"""Settings of the encoders: apart from them, so that commands that encode nothing read settings without torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from model.config import Device
from producer.api.bucket import Bucket

if TYPE_CHECKING:
    from model.vae_tiles import Tiling


class EncoderConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """The encoders, in the released layout, and the shapes they run at."""

    root: Path  # holds vae/, text_encoder/ and tokenizer/
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: Device = "cpu"  # or cuda, cuda:1, ...
    threads: int = Field(default=1, ge=1)  # CPU threads of one worker
    decode_threads: int = Field(default=2, ge=1)  # pictures read and decoded at once, while the device encodes others
    picture_batch: int = Field(default=4, ge=1)  # pictures through the VAE at once, at most ...
    picture_pixels: int = Field(default=4 << 20, ge=1)  # ... and their pixels, if that is at least one picture
    tile_above: int = Field(default=0, ge=0)  # pixels a side above which it works in blended tiles; 0: never
    text_batch: int = Field(default=16, ge=1)  # captions through the text encoder at once, at most ...
    text_tokens: int = Field(default=8192, ge=1)  # ... and their tokens with padding, if that is at least one caption
    text_multiple: int = Field(default=8, ge=1)  # tokens; captions are padded to a multiple of this
    max_text_tokens: int = Field(default=1024, ge=16, le=1024)  # of a caption and the template's end; more is rejected

    def pictures(self, bucket: Bucket) -> int:
        """How many pictures of `bucket` go through the VAE at once, always."""
        return min(self.picture_batch, max(1, self.picture_pixels // (bucket.height * bucket.width)))

    @property
    def tiling(self) -> "Tiling | None":
        """How the VAE cuts large pictures, which saves memory and costs exactness where tiles meet."""
        from model.vae_tiles import Tiling

        return Tiling(self.tile_above) if self.tile_above else None
