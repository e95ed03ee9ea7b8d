"""What a sample costs to train, as the plan balances it."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model.count import per_token_and_pair

if TYPE_CHECKING:
    from model.config import MMDiTConfig


class CostModel(NamedTuple):
    """FLOPs as a polynomial of a sample's tokens, in whole numbers: the same order on every machine."""

    per_token: int
    per_pair: int

    @classmethod
    def of(cls, sizes: "MMDiTConfig") -> "CostModel":
        """The cost of training a model of these sizes."""
        return cls(*per_token_and_pair(sizes))

    def __call__(self, image: np.ndarray, text: np.ndarray) -> np.ndarray:
        """The cost of each sample of `image` and `text` tokens: int64."""
        tokens = np.asarray(image, np.int64) + text
        return self.per_token * tokens + self.per_pair * tokens * tokens
