"""The pretraining objective: squared error of the velocity (arXiv 2508.02324 section 4.1, in the code's convention).

The loss is a sum over samples of each sample's mean over its latent, to be divided by the step's global number of
samples: every sample counts alike, whatever its size and wherever it is trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.config import FlowConfig
from model.flow import Draw, draw, noised, weight_at
from model.latent import normalise, pack
from model.layout import Layout
from model.transfer import sent
from producer.api.unit import Encoded, Latent

Velocity = Callable[[Tensor, Tensor, Tensor, Layout], Tensor]


class BatchError(ValueError):
    """A unit cannot be trained on; the message names the sample."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A unit ready for the model: packed tokens and what the velocity at them should be."""

    keys: tuple[str, ...]  # none for a unit whose samples were all rejected: it stands in with nothing to learn
    image: Tensor  # [i, 4 c] noised latents of targets, each followed by its clean references
    text: Tensor  # [t, e]
    sigma: Tensor  # [b] fp32
    target: Tensor  # [targets, 4 c] fp32 velocity
    weight: Tensor  # [b] fp32, what each sample's error counts
    layout: Layout
    sizes: tuple[tuple[int, int], ...] = ()  # (height, width) in pixels of each target that counts

    @property
    def tokens(self) -> int:
        """Image and text tokens together."""
        return sum(map(sum, self.lengths))

    @property
    def lengths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Image and text tokens of each sample that counts."""
        return (self.layout.image_lengths, self.layout.text_lengths) if self.keys else ((), ())


class FlowObjective:
    """Samples to batches to losses. `mean` and `std` [c] normalise latents; `empty` [t, e] is the empty prompt.

    `buckets` are the sizes (height, width) that a target may have; none: any.
    """

    def __init__(
        self,
        config: FlowConfig,
        *,
        seed: int,
        mean: Tensor,
        std: Tensor,
        empty: Tensor,
        axes: Sequence[int],
        buckets: frozenset[tuple[int, int]] = frozenset(),
    ) -> None:
        self.config, self.seed, self.axes, self.buckets = config, seed, axes, buckets
        self.mean, self.std, self.empty = mean, std, empty

    def batch(self, samples: Sequence[Encoded], step: int | str, device: torch.device, dtype: torch.dtype) -> Batch:
        """The unit's samples with their draws of `step`; "validation" as a step gives the same draws each time."""
        keys = tuple(sample.key for sample in samples)
        samples = samples or [self._nothing()]
        images, texts, sigmas, targets, grids = [], [], [], [], []
        for sample in samples:
            chance = draw(self.config, sample.latent.mean.shape, self.seed, step, sample.key)
            point, velocity = noised(self._data(sample, chance), chance.noise, chance.sigma)
            images += [pack(point), *(pack(self._normalised(reference.mean)) for reference in sample.references)]
            targets.append(pack(velocity))
            texts.append(self.empty if chance.dropped and step != "validation" else text_of(sample))
            sigmas.append(chance.sigma)
            pictures = (sample.latent, *sample.references)
            grids.append([(frame, p.height // 16, p.width // 16) for frame, p in enumerate(pictures)])
        self._check(samples if keys else (), texts)
        layout = Layout.build(grids, [len(text) for text in texts], self.axes, keys=keys)
        image, text = torch.cat(images), torch.cat(texts)
        layout.check_finite(image, text)
        return Batch(
            keys,
            sent(image.to(dtype), device),
            sent(text.to(dtype), device),
            sent(torch.tensor(sigmas), device),
            sent(torch.cat(targets), device),
            sent(torch.tensor([weight_at(self.config, sigma) for sigma in sigmas]), device),
            layout.to(device),
            tuple((sample.latent.height, sample.latent.width) for sample in samples) if keys else (),
        )

    def loss(self, model: Velocity, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum over samples, with gradient, and each sample's loss [b] without."""
        velocity = model(batch.image, batch.text, batch.sigma, batch.layout)
        error = (velocity.float() - batch.target).square().mean(-1)
        means = [part.mean() for part in error.split(list(batch.layout.target_lengths))]
        losses = torch.stack(means) * batch.weight
        if not batch.keys:
            # Every rank still runs backward, or the ranks that reduce gradients with it would wait for ever.
            return 0 * losses.sum(), losses.detach()[:0]
        return losses.sum(), losses.detach()

    def _nothing(self) -> Encoded:
        zeros = np.zeros((len(self.mean), 2, 2), "float16")
        text = np.zeros((1, self.empty.shape[1]), "uint16")
        return Encoded("", "", "", "t2i", "", "", Latent(16, 16, zeros, zeros), text)

    def _data(self, sample: Encoded, chance: Draw) -> Tensor:
        """The clean target; references are always the posterior's mean, as the edit pipelines encode them."""
        if self.config.posterior == "mean":
            return self._normalised(sample.latent.mean)
        logvar = torch.from_numpy(sample.latent.logvar.astype("float32"))
        return self._normalised(sample.latent.mean, (0.5 * logvar).exp() * chance.posterior)

    def _normalised(self, mean: np.ndarray, deviation: Tensor | float = 0.0) -> Tensor:
        return normalise(torch.from_numpy(mean.astype("float32")) + deviation, self.mean, self.std)

    def _check(self, samples: Sequence[Encoded], texts: Sequence[Tensor]) -> None:
        channels, width = len(self.mean), self.empty.shape[1]
        for sample, text in zip(samples, texts, strict=bool(samples)):
            size = (sample.latent.height, sample.latent.width)
            if self.buckets and size not in self.buckets:
                known = ", ".join(f"{height}x{width}" for height, width in sorted(self.buckets))
                raise BatchError(
                    f"sample {sample.key!r}: a latent of {size[0]}x{size[1]} is in none of the recipe's buckets "
                    f"{known}; start producers and trainers with the same recipe"
                )
            if sample.latent.mean.shape[0] != channels:
                got = sample.latent.mean.shape[0]
                raise BatchError(f"sample {sample.key!r}: {got} latent channels, the VAE has {channels}")
            if text.shape[1] != width:
                raise BatchError(f"sample {sample.key!r}: prompt width {text.shape[1]}, the empty prompt's is {width}")


def text_of(sample: Encoded) -> Tensor:
    """A sample's prompt embedding [t, e] in bfloat16."""
    return torch.from_numpy(sample.text.astype("int16")).view(torch.bfloat16)
