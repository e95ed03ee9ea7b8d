"""Pure rendering: a passage on a plain ground, set to fit the canvas (report section 3.4.1)."""

from typing import Annotated, cast

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field, model_validator

from producer.api.bucket import ASPECTS, Bucket, bucket
from producer.synthesize.chance import chance
from producer.synthesize.colour import Colour, ground_and_ink
from producer.synthesize.corpus import Corpus, Passage
from producer.synthesize.fonts import Fonts
from producer.synthesize.layout import Align, Block, fit, written
from producer.synthesize.sample import Sample, SynthesisError, Truth
from producer.synthesize.wording import Language, displayed

# Passages tried for one canvas before it is said that they are too long for it.
_TRIES = 20


class PureConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    resolution: int = Field(default=512, ge=64)  # pixels squared of a canvas
    aspects: tuple[Annotated[str, Field(pattern=r"^[1-9]\d?:[1-9]\d?$")], ...] = Field(default=ASPECTS, min_length=1)
    least_size: int = Field(default=18, ge=6)  # pixels an em
    most_size: float = Field(default=0.28, gt=0, le=1)  # share of the shorter side an em
    margin: tuple[float, float] = (0.04, 0.14)  # share of the shorter side, drawn between
    leading: tuple[float, float] = (1.2, 1.7)  # baseline to baseline, ems, drawn between
    contrast: float = Field(default=3.0, ge=1.5, le=7)  # least ratio of ink and ground (WCAG: 3 for large text)
    chinese_captions: float = Field(default=0.3, ge=0, le=1)  # share; the others are English, whatever the text is

    @model_validator(mode="after")
    def _ordered(self) -> "PureConfig":
        for name, (low, high), most in (("margin", self.margin, 0.4), ("leading", self.leading, 4.0)):
            if not 0 <= low <= high <= most:
                raise ValueError(f"pure.{name}: {low:g} to {high:g} is no range within 0 to {most:g}; least first")
        return self


class Pure:
    """Makes sample `index`, a pure function of (seed, index), the corpus and the fonts."""

    name = "pure"

    def __init__(self, config: PureConfig, corpus: Corpus, fonts: Fonts, seed: int) -> None:
        self._config, self._corpus, self._fonts, self._seed = config, corpus, fonts, seed

    def make(self, index: int) -> Sample:
        """Raises SynthesisError where no passage drawn fits the canvas at the least size."""
        rng = chance(self._seed, self.name, index)
        canvas = bucket(self._config.resolution, self._config.aspects[rng.integers(len(self._config.aspects))])
        ground, ink = ground_and_ink(rng, self._config.contrast)
        for _ in range(_TRIES):
            passage = self._corpus.draw(rng)
            margin = round(rng.uniform(*self._config.margin) * min(canvas))
            block = self._set(passage, canvas.width - 2 * margin, canvas.height - 2 * margin, rng)
            if block:
                top = margin + round(rng.choice((0.0, 0.5, 0.5, 1.0)) * (canvas.height - 2 * margin - block.height))
                image, truth = self._draw(index, canvas, passage.text, block, (margin, top), ground, ink)
                language: Language = "zh" if rng.random() < self._config.chinese_captions else "en"
                hand = block.face.handwritten
                return Sample(image, displayed(ground, ink, passage.text, language, handwritten=hand), truth)
        raise SynthesisError(
            f"pure.least_size: {_TRIES} passages of up to corpus.max_characters do not fit {canvas.width} x "
            f"{canvas.height} pixels at {self._config.least_size}; make one of them smaller, or pure.resolution larger"
        )

    def _set(self, passage: Passage, width: int, height: int, rng: np.random.Generator) -> Block | None:
        least = self._config.least_size
        largest = max(least, round(self._config.most_size * min(width, height)))
        return fit(
            passage.text,
            self._fonts.faces[passage.faces[rng.integers(len(passage.faces))]],
            width,
            height,
            # Not always as large as fits: sizes are spread over what the canvas allows.
            sizes=(least, max(least, round(least * (largest / least) ** rng.uniform(0.3, 1.0)))),
            leading=rng.uniform(*self._config.leading),
            align=cast(Align, str(rng.choice(("left", "center", "right"), p=(0.5, 0.4, 0.1)))),
        )

    def _draw(
        self, index: int, canvas: Bucket, text: str, block: Block, place: tuple[int, int], ground: Colour, ink: Colour
    ) -> tuple[Image.Image, Truth]:
        image = Image.new("RGB", (canvas.width, canvas.height), ground.rgb)
        mask = Image.new("L", image.size)
        block.draw(mask, *place)
        image.paste(ink.rgb, mask=mask)
        return image, Truth(
            way=self.name,
            seed=self._seed,
            index=index,
            width=image.width,
            height=image.height,
            setting=f"plain {ground.name}",
            texts=(written(text, block, block.truth(*place), ink, (ground.name, ground.rgb)),),
        )
