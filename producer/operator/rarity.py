"""Rarity: common, uncommon or rare text, or none, for a recipe to draw rare characters more often (stage 7).

The report resamples text against the long tail of its tokens. Here that is a mixture by class: `recipe.classes.rarity`
gives each class its share of the samples, so a class whose share is above its number comes round more often, every
sample of it equally often, and no sample twice before all of its class. Repeating single samples by their own weights
would need another kind of plan; three classes are what a weight can be chosen for.
"""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from producer.operator.judgement import OptIn
from producer.scratch import MEMORY, Space, pieces


class RarityConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 7
    of = "tag"
    # Of the samples with text, by number. Our choice: the report does not say where the tail begins.
    rare: float = Field(default=0.1, gt=0, lt=1)
    uncommon: float = Field(default=0.3, gt=0, lt=1)

    @model_validator(mode="after")
    def _leaves_some(self) -> "RarityConfig":
        if self.rare + self.uncommon >= 1:
            raise ValueError(f"rare {self.rare:g} and uncommon {self.uncommon:g} leave nothing common; make them less")
        return self

    def operator(self) -> "Rarity":
        return Rarity(self.rare, self.uncommon)


class Rarity:
    """Tag: "rare" for the share `rare` of the samples with text that character_rarity scores highest, "uncommon" for
    the next `uncommon`, "common" for the others, "none" for samples without text. Equal scores are of one class, the
    more common one.
    """

    name = "rarity"
    version = 1
    needs: tuple[str, ...] = ("score.character_rarity",)
    may: tuple[str, ...] = ()

    def __init__(self, rare: float, uncommon: float) -> None:
        self._shares = {"uncommon": rare + uncommon, "rare": rare}

    def tag_table(self, table: pa.Table, space: Space = MEMORY) -> Iterator[list[str]]:
        score = space.reals(table["score.character_rarity"])
        bounds = self._bounds(score, space)
        for part in pieces(len(score)):
            tags = np.where(np.isnan(score[part]), "none", "common").astype(object)
            for name, bound in bounds.items():
                tags[score[part] > bound] = name
            yield tags.tolist()

    def _bounds(self, score: np.ndarray, space: Space) -> dict[str, float]:
        """The score above which a sample is in each class."""
        text = space.empty(len(score), np.bool_)
        for part in pieces(len(score)):
            text[part] = ~np.isnan(score[part])
        known = space.take(score, space.where(text))
        known.sort()
        last = len(known) - 1
        above = {name: min(round(share * len(known)), last) for name, share in self._shares.items()}
        return {name: float(known[last - number]) for name, number in above.items()} if len(known) else {}
