"""The operators of a recipe (arXiv 2508.02324 section 3.2), in the order in which they may drop a sample.

Those of stage 1 always judge. Of every other file here, the operator judges where the recipe has a section of its name.
"""

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, create_model

from producer.digest import hash_folder
from producer.operator.broken import Broken, BrokenConfig
from producer.operator.caption import Caption
from producer.operator.exact_duplicate import ExactDuplicate
from producer.operator.file_size import FileSize, FileSizeConfig
from producer.operator.judgement import SIDE, Operator, OptIn, SetOperator
from producer.operator.near_duplicate import NearDuplicate, NearDuplicateConfig
from producer.operator.nsfw import Nsfw, NsfwConfig
from producer.operator.resolution import Resolution, ResolutionConfig


def _find() -> dict[str, type[OptIn]]:
    """The settings of all operators of this folder that a recipe may ask for, by name, in the order of asking."""
    files = [one.name for one in pkgutil.iter_modules([str(Path(__file__).parent)]) if one.name != "stage"]
    kinds = {}
    for name in sorted(files):
        module = importlib.import_module(f"producer.operator.{name}")
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, OptIn) and kind is not OptIn:
                kinds[name] = kind
    return dict(sorted(kinds.items(), key=lambda item: item[1].stage))


OPT_IN = _find()


class _StageOneConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    broken: BrokenConfig = Field(default_factory=BrokenConfig)
    file_size: FileSizeConfig = Field(default_factory=FileSizeConfig)
    resolution: ResolutionConfig = Field(default_factory=ResolutionConfig)
    nsfw: NsfwConfig = Field(default_factory=NsfwConfig)
    near_duplicate: NearDuplicateConfig = Field(default_factory=NearDuplicateConfig)


if TYPE_CHECKING:

    class OperatorsConfig(_StageOneConfig, frozen=True):
        """A section an operator: its thresholds, and what it needs to score; more of them in OPT_IN."""
else:
    OperatorsConfig = create_model(
        "OperatorsConfig",
        __base__=_StageOneConfig,
        __module__=__name__,
        __doc__="A section an operator: its thresholds, and what it needs to score.",
        **{name: (kind | None, None) for name, kind in OPT_IN.items()},
    )


@dataclass(frozen=True)
class Stage:
    """Operators ready to judge."""

    broken: Broken
    single: tuple[Operator, ...]  # see samples, in parallel; `broken` is the first
    whole: tuple[SetOperator, ...]  # see what those keep, one after the other
    off: dict[str, str]  # operator -> why it does not judge

    @property
    def names(self) -> list[str]:
        """Every operator, the switched off ones too, in the order in which they are asked."""
        return [*(one.name for one in self.single), *self.off, *(one.name for one in self.whole)]


def build_stage(config: OperatorsConfig) -> Stage:
    """The operators that `config` asks for; one that needs a model is off without it."""
    broken = Broken(config.broken)
    single: list[Operator] = [broken, FileSize(config.file_size), Resolution(config.resolution), Caption()]
    off = {}
    if config.nsfw.model is None:
        off[Nsfw.name] = "no classifier: set operators.nsfw.model to a folder"
    else:
        single.append(Nsfw(config.nsfw))
    asked = [getattr(config, name) for name in OPT_IN]
    single += [one.operator() for one in asked if one is not None]
    return Stage(broken, tuple(single), (ExactDuplicate(), NearDuplicate(config.near_duplicate)), off)


def describe(config: OperatorsConfig, stage: Stage) -> dict[str, Any]:
    """What made the verdicts, by operator, as JSON values: versions, thresholds, content of models; no paths."""
    settings = config.model_dump(mode="json")
    said: dict[str, Any] = {name: {"off": why} for name, why in stage.off.items()}
    judges: list[Operator | SetOperator] = [*stage.single, *stage.whole]
    for one in judges:
        said[one.name] = {"version": one.version, **settings.get(one.name, {})}
    if config.nsfw.model is not None:
        said[Nsfw.name]["model"] = hash_folder(config.nsfw.model)
    return {name: said[name] for name in stage.names}


def scoring(config: OperatorsConfig, stage: Stage) -> dict[str, Any]:
    """The part of `describe` that scores depend on: all but thresholds."""
    said: dict[str, Any] = {one.name: one.version for one in stage.single}
    said |= {"side": SIDE, "limits": list(stage.broken.limits), "hashes": NearDuplicate.version}
    if config.nsfw.model is not None:
        said |= {"nsfw.model": hash_folder(config.nsfw.model), "nsfw.unsafe": list(config.nsfw.unsafe)}
    return said
