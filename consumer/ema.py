"""An fp32 average of the weights, exponential in steps, in the same shards as the optimizer's main parameters."""

import torch
from torch import Tensor

from consumer.config import EmaConfig
from parallel.engine import Engine
from parallel.shard import Shard


class Ema:
    """The average on this rank. Never-trained weights are in it too: it is a whole model's weights."""

    def __init__(self, config: EmaConfig, engine: Engine) -> None:
        self.config = config
        self._averages = {
            (shard.name, shard.start): shard.tensors["param"].to(torch.float32, copy=True) for shard in engine.shards()
        }

    def update(self, engine: Engine, step: int) -> None:
        """Take in the weights after step `step`, counted from 0; nothing is gathered."""
        weight = 1.0 if step < self.config.start else 1.0 - self.config.decay
        moving = [shard for shard in engine.shards() if "exp_avg" in shard.tensors]
        averages, weights = [self.of(shard) for shard in moving], [shard.tensors["param"] for shard in moving]
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, weight)

    def swap(self, engine: Engine) -> None:
        """Exchange the average and the main weights of this rank's shards; a second time undoes it to the bit."""
        with torch.no_grad():
            for shard in engine.shards():
                if "exp_avg" in shard.tensors:  # the others have never moved
                    weight, average = shard.tensors["param"], self.of(shard)
                    kept = weight.clone()
                    weight.copy_(average)
                    average.copy_(kept)

    def of(self, shard: Shard) -> Tensor:
        """The live average of what `shard` holds, flat."""
        return self._averages[shard.name, shard.start]
