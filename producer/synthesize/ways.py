"""The three ways of synthesis, made from settings: what every process needs to make any sample."""

import importlib.util
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Field, model_validator

from producer.synthesize.compositional import Compositional, CompositionalConfig
from producer.synthesize.corpus import Corpus, CorpusConfig
from producer.synthesize.fonts import Fonts, FontsConfig
from producer.synthesize.pure import Pure, PureConfig
from producer.synthesize.sample import SynthesisError
from producer.synthesize.shards import ShardsConfig, Way
from producer.synthesize.template import Template, TemplateConfig
from producer.synthesize.workers import WorkersConfig

_PACKAGE = "package:"

Config = TypeVar("Config", bound=BaseModel)


class CountConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """Samples to make of each way."""

    pure: int = Field(default=0, ge=0)
    compositional: int = Field(default=0, ge=0)
    template: int = Field(default=0, ge=0)


class SynthesizeSettings(BaseModel, frozen=True, strict=True, extra="forbid"):
    """A section a component."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    shards: ShardsConfig
    workers: WorkersConfig = Field(default_factory=WorkersConfig)
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

    def absolute(self) -> "SynthesizeSettings":
        """The same for a process in another folder."""
        said = self.model_copy(
            update={
                "shards": _absolute(self.shards, "out"),
                "fonts": _absolute(self.fonts, "folder"),
                "corpus": _absolute(self.corpus, "files"),
                "compositional": self.compositional.model_copy(
                    update={"backdrop": _absolute(self.compositional.backdrop, "folder")}
                ),
            }
        )
        return said.model_copy(update={"template": _absolute(self.template, "folder")}) if self.template else said


def _absolute(config: Config, name: str) -> Config:
    """`config` with its path, or paths, `name` made absolute, but for folders of packages."""
    said = getattr(config, name)
    if isinstance(said, tuple):
        return config.model_copy(update={name: tuple(path.absolute() for path in said)})
    kept = said is None or str(said).startswith(_PACKAGE)
    return config if kept else config.model_copy(update={name: said.absolute()})


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
