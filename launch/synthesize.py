"""Make pictures of text: webdataset tars of images, captions and ground truth.

    python launch/synthesize.py CONFIG [key.path=value ...] [--sheet PNG] [--show]

`shards.out` gets WAY-NNNNN.tar with NAME.png (or .jpg), NAME.txt (the caption) and NAME.json (text, boxes, fonts,
colours). Sample `index` of a way follows from the seed and the index alone: the same bytes again, wherever it is made.
"""

import argparse
import importlib.util
from pathlib import Path

from pydantic import BaseModel, Field, model_validator

from launch.config import load, show
from launch.contact_sheet import contact_sheet
from launch.settings import guarded
from producer.synthesize.compositional import Compositional, CompositionalConfig
from producer.synthesize.corpus import Corpus, CorpusConfig
from producer.synthesize.fonts import Fonts, FontsConfig
from producer.synthesize.pure import Pure, PureConfig
from producer.synthesize.sample import Sample, SynthesisError
from producer.synthesize.shards import ShardsConfig, Way, write_shards
from producer.synthesize.template import Template, TemplateConfig

_PACKAGE = "package:"
# Samples of each way on the contact sheet.
_SHOWN = 24


class CountConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """Samples to make of each way."""

    pure: int = Field(default=0, ge=0)
    compositional: int = Field(default=0, ge=0)
    template: int = Field(default=0, ge=0)


class SynthesizeSettings(BaseModel, frozen=True, strict=True, extra="forbid"):
    """A section a component."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    shards: ShardsConfig
    count: CountConfig
    fonts: FontsConfig  # the folder may be package:NAME/FOLDER, a folder inside an installed package
    corpus: CorpusConfig
    pure: PureConfig = Field(default_factory=PureConfig)
    compositional: CompositionalConfig = Field(default_factory=CompositionalConfig)
    template: TemplateConfig | None = None

    @model_validator(mode="after")
    def _asks_for_some(self) -> "SynthesizeSettings":
        if not any(self.count.model_dump().values()):
            raise ValueError("count: nothing to make; set count.pure or another way to 1 or more")
        if self.count.template and self.template is None:
            raise ValueError(
                f"count.template: {self.count.template} samples, but no layouts; set template.folder, or it to 0"
            )
        return self


def ways(settings: SynthesizeSettings) -> tuple[list[tuple[Way, int]], Fonts, Corpus]:
    """Each way with the number of samples asked of it, and what they draw from."""
    fonts = Fonts(settings.fonts.model_copy(update={"folder": _folder(settings.fonts.folder)}))
    corpus = Corpus(settings.corpus, fonts)
    seed, count = settings.seed, settings.count
    made: list[tuple[Way, int]] = []
    if count.pure:
        made.append((Pure(settings.pure, corpus, fonts, seed), count.pure))
    if count.compositional:
        made.append((Compositional(settings.compositional, corpus, fonts, seed), count.compositional))
    if count.template and settings.template:
        made.append((Template(settings.template, corpus, fonts, seed), count.template))
    return made, fonts, corpus


def _folder(folder: Path) -> Path:
    """`folder`, or the one inside an installed package that it names."""
    if not str(folder).startswith(_PACKAGE):
        return folder
    name, _, inside = str(folder).removeprefix(_PACKAGE).partition("/")
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise SynthesisError(f"fonts.folder: the package {name!r} is not installed; pip install it, or name a folder")
    return Path(found.submodule_search_locations[0]) / inside


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings laid over the file's")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="write the first samples of each way as one picture")
    parser.add_argument("--show", action="store_true", help="print the resolved settings and end")
    arguments = parser.parse_intermixed_args()
    settings = load(SynthesizeSettings, arguments.config, arguments.overrides)
    if arguments.show:
        print(show(settings))
        return 0
    chosen, fonts, corpus = ways(settings)
    print(f"{len(fonts.faces)} fonts, {len(corpus.passages)} passages, {len(corpus.alphabet)} different characters")
    for reason, number in sorted(corpus.dropped.items()):
        print(f"left out: {number} paragraphs that {reason}")
    shown: list[Sample] = []
    for way, count in chosen:
        for made in write_shards(way, count, settings.shards, keep=_SHOWN if arguments.sheet else 0):
            shown += made.first
            print(f"{made.path}: {made.samples} samples", flush=True)
    if arguments.sheet:
        contact_sheet(shown, arguments.sheet, fonts)
    return 0


if __name__ == "__main__":
    guarded(main)
