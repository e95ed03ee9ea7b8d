"""Chinese CLIP: captions that do not belong to their picture, for sets in Chinese; none without a model's path."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from producer.operator.alignment import Alignment
from producer.operator.judgement import OptIn
from producer.operator.pretrained import content_hash


class ChineseClipConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 3
    of = "captions"
    runs_model = True
    model: Path | None = None  # a folder with a Chinese CLIP as transformers saves it; none: the operator is off
    splits: tuple[str, ...] = ("raw",)  # the report judges raw captions alone; none: all
    # Cosine. The report publishes no threshold. The model's makers suggest 0.3 (OFA-Sys/Chinese-CLIP#89); pairs that
    # match have 0.3 to 0.6 (#42).
    min: float = Field(default=0.3, ge=-1, le=1)

    def operator(self) -> "ChineseClip":
        assert self.model is not None
        return ChineseClip(self.model, self.splits, self.min)

    def off_reason(self) -> str:
        return "" if self.model else "no model: set operators.chinese_clip.model to a folder with a Chinese CLIP"

    def content(self) -> dict[str, Any]:
        return {"model": content_hash(self.model), "splits": list(self.splits)} if self.model else {}


class ChineseClip(Alignment):
    """Score: the cosine between Chinese CLIP's embeddings of picture and caption, -1 to 1; of the released models
    mostly 0.2 to 0.6. Higher means they belong together.

    The picture is seen as the folder's processor prepares it, from SIDE pixels of the longest side at most; of a
    caption the first 52 tokens are read, as in the model's training. It was trained on Chinese: in a mixed set its
    bound may drop captions for their language. Kept from `min` on.
    """

    name = "chinese_clip"
    kinds = ("ChineseCLIPModel",)
