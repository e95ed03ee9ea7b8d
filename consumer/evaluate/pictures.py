"""Pictures of held-out prompts, drawn with the averaged weights: the same prompts, sizes and noise at every interval.

Picture k is of validation unit k, so that buckets take turns, and is drawn by the model-parallel group that validates
on that unit. Latents meet in one sum; rank 0 decodes them and writes the sheet.
"""

import logging
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from consumer.config import PicturesConfig
from consumer.ema import Ema
from consumer.evaluate.averaged import ema_weights
from consumer.evaluate.grid import compose, find_font, save
from consumer.metrics import PicturesReport
from consumer.objective.flow import FlowObjective, text_of
from consumer.source.group import GroupSource
from model.flow import draw
from model.latent import denormalise, normalise, pack, unpack
from model.mmdit import MMDiT
from model.sampler import conditioned, euler, guided
from model.vae import ImageVae, read_config
from model.vae_tiles import Tiling
from parallel.engine import Engine
from parallel.mesh import Mesh
from producer.api.unit import Encoded, UnitId

log = logging.getLogger(__name__)


class Pictures:
    """Made on every rank at once, while producers serve. `vae` is the released VAE's folder, `folder` the sheets'."""

    def __init__(
        self,
        config: PicturesConfig,
        engine: Engine,
        ema: Ema,
        objective: FlowObjective,
        source: GroupSource,
        *,
        vae: Path,
        folder: Path,
        tiling: Tiling | None = None,
    ) -> None:
        self.config, self.engine, self.ema, self.objective = config, engine, ema, objective
        self.mesh: Mesh = engine.mesh
        self.vae, self.folder, self.tiling = vae, folder, tiling
        self._units, self._slot = source.welcome.validation_units, 0
        self._samples: dict[int, Encoded] = {}
        if config.every and self._units:
            read_config(vae)
            self._samples = self._chosen(source)
            cells = max((sample.latent.mean.size for sample in self._samples.values()), default=0)
            self._slot = int(self.mesh.max(torch.tensor([cells], device=self.mesh.device)).item())

    def due(self, done: int) -> bool:
        """Whether a sheet is drawn after `done` steps."""
        return bool(self._slot) and done % self.config.every == 0

    def draw(self, step: int) -> PicturesReport | None:
        """Draw and write the sheet of `step`, on every rank at once; the report on rank 0 once it is written.

        A sheet that rank 0 cannot decode or write is named in a warning, and training goes on.
        """
        start = time.perf_counter()
        with ema_weights(self.engine, self.ema):
            latents = self.latents()
        if self.mesh.rank:
            return None
        path = self.folder / f"step-{step:08d}.png"
        try:
            captions = self._write(latents, path)
        except Exception as error:  # whatever it is, a month of training is worth more than a sheet
            log.warning("%s was not drawn: %s: %s", path, type(error).__name__, error)
            return None
        return PicturesReport(step, str(path), captions, time.perf_counter() - start)

    @torch.no_grad()
    def latents(self) -> dict[int, Tensor]:
        """Normalised latents [c, y, x] by the weights in place, of every picture whose sample this rank has."""
        slots = torch.zeros(self.config.count, self._slot, device=self.mesh.device)
        mine = [k for k in self._samples if self._owner(k) == self.mesh.dp_rank]
        for first in range(0, len(mine), self.config.batch):
            chosen = mine[first : first + self.config.batch]
            for k, latent in zip(chosen, self._sampled([self._samples[k] for k in chosen]), strict=True):
                slots[k, : latent.numel()] = latent.flatten()
        self.mesh.sum(slots)
        shapes = {k: sample.latent.mean.shape for k, sample in self._samples.items()}
        return {k: slots[k, : int(np.prod(shape))].view(shape).cpu() for k, shape in shapes.items()}

    def _chosen(self, source: GroupSource) -> dict[int, Encoded]:
        """The samples that this group draws; on the first group all, since rank 0 has their captions to write."""
        units = self._units
        mine = [k for k in range(self.config.count) if self.mesh.dp_rank in (0, self._owner(k))]
        found: dict[int, Encoded] = {}
        for unit in dict.fromkeys(k % units for k in mine):
            samples, _ = source.unit(UnitId("validation", 0, unit))
            # More pictures than units: a unit's second sample follows after every unit's first.
            found |= {k: samples[k // units] for k in mine if k % units == unit and k // units < len(samples)}
        return {k: found[k] for k in sorted(found)}

    def _owner(self, k: int) -> int:
        """Which group draws picture `k`."""
        return k % self._units % self.mesh.dp

    def _sampled(self, samples: list[Encoded]) -> list[Tensor]:
        """Normalised latents [c, y, x] from each sample's own noise."""
        flow, model = self.objective, self.engine.module
        assert isinstance(model, MMDiT)
        shapes = [sample.latent.mean.shape for sample in samples]
        noise = [
            pack(draw(flow.config, shape, flow.seed, "pictures", sample.key).noise)
            for shape, sample in zip(shapes, samples, strict=True)
        ]
        cells = [(y, x) for _, y, x in shapes]
        references = [
            [normalise(torch.from_numpy(latent.mean.astype("float32")), flow.mean, flow.std) for latent in s.references]
            for s in samples
        ]
        velocity = conditioned(model, cells, [text_of(sample) for sample in samples], references)
        if self.config.guidance > 1:
            empty = conditioned(model, cells, [flow.empty] * len(samples), references)
            velocity = guided(velocity, empty, self.config.guidance)
        tokens = euler(velocity, noise, self.config.steps)
        return [unpack(sample, y, x) for sample, (y, x) in zip(tokens, cells, strict=True)]

    def _write(self, latents: dict[int, Tensor], path: Path) -> tuple[str, ...]:
        """The captions of the sheet at `path`. The VAE lives for the moment only: its memory is the training's."""
        cuda = self.mesh.device.type == "cuda"
        vae = ImageVae(self.vae, torch.bfloat16 if cuda else torch.float32, str(self.mesh.device), self.tiling)
        pictures = [_pixels(vae, latent) for latent in latents.values()]
        captions = tuple(self._samples[k].caption for k in latents)
        save(compose(pictures, captions, min(4, len(pictures)), find_font()), path)
        return captions


def _pixels(vae: ImageVae, latent: Tensor) -> np.ndarray:
    """uint8 [h, w, 3] of a normalised latent [c, y, x]."""
    pixels = vae.decode(denormalise(latent, vae.mean, vae.std)[None])[0]
    return (pixels[:3].permute(1, 2, 0) * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
