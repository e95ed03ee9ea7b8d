"""What a step trains on, from the recipe alone: the units of each resolution, typical ones and the costliest.

The planner has no index, so captions are an assumption: their mean length is given, and the costliest unit also holds
one of the longest allowed.
"""

from dataclasses import dataclass

import numpy as np

from launch.dry import Sample
from model.config import MMDiTConfig
from model.count import training_flops
from producer.api.bucket import MULTIPLE, Bucket
from producer.cost import CostModel
from producer.recipe import RecipeConfig


@dataclass(frozen=True)
class Unit:
    """A rank's micro-batch: samples of one bucket."""

    resolution: int
    samples: tuple[Sample, ...]

    @property
    def tokens(self) -> int:
        return sum(height * width + text for (height, width), text in self.samples)

    def flops(self, sizes: MMDiTConfig) -> int:
        """The model's FLOPs of forward and backward, nothing computed twice."""
        return sum(training_flops(sizes, height * width, text) for (height, width), text in self.samples)


@dataclass(frozen=True)
class Workload:
    """A step's units: so many, of the resolutions in equal shares; `worst` is the one with the most tokens."""

    units: int
    typical: tuple[Unit, ...]
    worst: Unit

    @property
    def samples(self) -> float:
        """Pictures a step."""
        return self.units * sum(len(unit.samples) for unit in self.typical) / len(self.typical)

    @property
    def tokens(self) -> float:
        """Tokens a step, image and text."""
        return self.units * sum(unit.tokens for unit in self.typical) / len(self.typical)

    def flops(self, sizes: MMDiTConfig) -> float:
        """The model's FLOPs a step."""
        return self.units * sum(unit.flops(sizes) for unit in self.typical) / len(self.typical)


def workload(recipe: RecipeConfig, sizes: MMDiTConfig, text: int) -> Workload:
    """The steps of `recipe` with captions of `text` tokens on average."""
    counts = unit_samples(recipe, sizes, text)
    typical = tuple(
        Unit(size, ((_grid(Bucket(size, size)), text),) * counts[size]) for size in sorted(recipe.resolutions)
    )
    longest = max(recipe.max_text_tokens, text)
    worst = []
    for size in recipe.resolutions:
        largest = _grid(max(recipe.buckets(size), key=lambda bucket: bucket.tokens))
        worst.append(Unit(size, ((largest, longest), *((largest, text),) * (counts[size] - 1))))
    return Workload(recipe.units, typical, max(worst, key=lambda unit: unit.tokens))


def unit_samples(recipe: RecipeConfig, sizes: MMDiTConfig, text: int) -> dict[int, int]:
    """Samples in a unit of each resolution, as producer/entry.py counts them from the index's mean caption."""
    cost = CostModel.of(sizes)
    costs = {size: int(cost(np.asarray((size // MULTIPLE) ** 2), np.asarray(text))) for size in recipe.resolutions}
    full = recipe.samples * min(costs.values())
    return {size: max(1, round(full / one)) for size, one in costs.items()}


def _grid(bucket: Bucket) -> tuple[int, int]:
    return bucket.height // MULTIPLE, bucket.width // MULTIPLE
