"""SigLIP 2: captions that do not belong to their picture; none without a model's path."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from producer.operator.alignment import Alignment
from producer.operator.judgement import OptIn
from producer.operator.pretrained import content_hash


class SiglipConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 3
    of = "captions"
    runs_model = True
    model: Path | None = None  # a folder with a SigLIP or SigLIP 2 as transformers saves it; none: the operator is off
    splits: tuple[str, ...] = ("raw",)  # the report judges raw captions alone; none: all
    # Cosine. The report publishes no threshold. On a picture of two cats so400m-patch16-256 gives "two cats" a
    # probability of 0.37, "a cat" 4e-4 and "a dog" 2e-7 (google-research/big_vision#180), which are cosines of about
    # 0.14, 0.08 and 0.01: this lies between what is true and what is not.
    min: float = Field(default=0.05, ge=-1, le=1)

    def operator(self) -> "Siglip":
        assert self.model is not None
        return Siglip(self.model, self.splits, self.min)

    def off_reason(self) -> str:
        return "" if self.model else "no model: set operators.siglip.model to a folder with a SigLIP 2"

    def content(self) -> dict[str, Any]:
        return {"model": content_hash(self.model), "splits": list(self.splits)} if self.model else {}


class Siglip(Alignment):
    """Score: the cosine between SigLIP's embeddings of picture and caption, -1 to 1; of the released models rarely
    beyond -0.1 to 0.3. Higher means they belong together. The model's own probability is sigmoid(exp(logit_scale) *
    cosine + logit_bias); these two numbers (a scale of about 112, a bias of about -17) differ between releases.

    The picture is seen as the folder's processor prepares it, usually squeezed to the model's square, from SIDE pixels
    of the longest side at most; of a caption the first 64 tokens are read, in small letters. Kept from `min` on.
    """

    name = "siglip"
    kinds = ("SiglipModel", "Siglip2Model")
