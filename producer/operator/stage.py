"""The operators of a recipe (arXiv 2508.02324 section 3.2), in the order in which they may drop a sample.

Those of stage 1 always judge. Of every other file here, the operator judges where the recipe has a section of its name.
"""

import importlib
import json
import pkgutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, Field, create_model

from producer.operator.broken import Broken, BrokenConfig
from producer.operator.caption import Caption
from producer.operator.exact_duplicate import ExactDuplicate
from producer.operator.file_size import FileSize, FileSizeConfig
from producer.operator.judgement import (
    FINE,
    SIDE,
    CaptionOperator,
    CaptionSetOperator,
    Operator,
    OptIn,
    SetOperator,
    TableOperator,
    TableTagger,
    Tagger,
    TextOperator,
)
from producer.operator.near_duplicate import NearDuplicate, NearDuplicateConfig
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
        **{
            name: (kind, Field(default_factory=kind)) if kind.always else (kind | None, None)
            for name, kind in OPT_IN.items()
        },
    )


class StageError(ValueError):
    """The operators of a recipe do not go together."""


@dataclass(frozen=True)
class Stage:
    """Operators ready to judge."""

    broken: Broken
    single: tuple[Operator, ...]  # judge samples, in parallel; `broken` is the first
    captions: tuple[CaptionOperator, ...]  # judge captions beside their pictures, in parallel
    texts: tuple[TextOperator, ...]  # judge captions by their words alone
    tags: tuple[Tagger, ...]  # in parallel
    whole: tuple[SetOperator, ...]  # see what those keep, one after the other
    crowds: tuple[CaptionSetOperator, ...]  # see the captions of what is still kept then
    tables: tuple[TableOperator | TableTagger, ...]  # see what is still kept then, each after those it builds on
    off: dict[str, str]  # operator -> why it does not judge
    kinds: dict[
        str, str
    ]  # every operator, the switched off ones too, in the order of asking: "sample", "captions", "tag"
    annotated: tuple[str, ...] = ()  # tags that come from annotation and not from an operator

    @property
    def names(self) -> list[str]:
        """Every operator that may drop a sample, the switched off ones too, in the order in which they are asked."""
        return [name for name, kind in self.kinds.items() if kind != "tag"]

    @property
    def scored(self) -> list[str]:
        """The operators whose scores are stored."""
        judges: list[Any] = [*self.single, *self.captions, *self.tags]
        return [one.name for one in judges]

    def only(self, names: Collection[str]) -> "Stage":
        """The same with those of `names` alone among the operators whose scores are stored."""
        return replace(
            self,
            single=tuple(one for one in self.single if one.name in names),
            captions=tuple(one for one in self.captions if one.name in names),
            tags=tuple(one for one in self.tags if one.name in names),
        )

    @property
    def fine(self) -> bool:
        """Whether an operator looks for small things, at FINE pixels."""
        return any(getattr(one, "fine", False) for one in (*self.single, *self.captions, *self.tags))


def build_stage(config: OperatorsConfig, annotated: Sequence[str] = ()) -> Stage:
    """The operators that `config` asks for; one that needs a model, or what another finds, is off without it.

    `annotated` names the tags that samples have from annotation.
    """
    broken = Broken(config.broken)
    judges: list[Any] = [broken, FileSize(config.file_size), Resolution(config.resolution), Caption()]
    kinds = {one.name: "sample" for one in judges}
    off: dict[str, str] = {}
    tables: list[TableOperator | TableTagger] = []
    crowds: list[CaptionSetOperator] = []
    for name, asked in _asked(config).items():
        if why := asked.off_reason():
            off[name], kinds[name] = why, asked.of
        elif hasattr(one := asked.operator(), "judge_table") or hasattr(one, "tag_table"):
            tables.append(cast(TableOperator | TableTagger, one))
        elif hasattr(one, "crowds"):
            crowds.append(cast(CaptionSetOperator, one))
        else:
            judges.append(one)
            kinds[name] = asked.of
    whole: tuple[SetOperator, ...] = (ExactDuplicate(), NearDuplicate(config.near_duplicate))
    kinds |= dict.fromkeys(annotated, "tag")
    together = dict.fromkeys((one.name for one in whole), "sample") | {one.name: "captions" for one in crowds}
    gone = _switch_off(tables, kinds | together, off)
    return Stage(
        broken,
        _able(judges, "score"),
        _able(judges, "score_captions"),
        _able(judges, "score_texts"),
        _able(judges, "tag"),
        whole,
        tuple(crowds),
        (last := _in_turn(tables)),
        off,
        kinds | gone | together | {one.name: _table_kind(one) for one in last},
        tuple(annotated),
    )


def _switch_off(
    tables: list[TableOperator | TableTagger], kinds: dict[str, str], off: dict[str, str]
) -> dict[str, str]:
    """Move those of `tables` to `off` that read what no operator says, and then those that read what these would.

    Returns the kind of each that was moved.
    """
    gone: dict[str, str] = {}
    while lacking := {one.name: missing for one in tables if (missing := _missing(one.needs, kinds, off, tables))}:
        for table in [one for one in tables if one.name in lacking]:
            tables.remove(table)
            gone[table.name] = _table_kind(table)
            off[table.name] = f"there is no {' and no '.join(lacking[table.name])} in this recipe"
    return gone


def _missing(
    needs: Sequence[str], kinds: dict[str, str], off: dict[str, str], tables: list[TableOperator | TableTagger]
) -> list[str]:
    """Those columns of `needs` that no operator fills."""
    there = {name: kind for name, kind in kinds.items() if name not in off} | {
        one.name: _table_kind(one) for one in tables
    }
    wanted = [need.partition(".") for need in needs]
    return [
        f"{kind}.{name}"
        for kind, dot, name in wanted
        if dot and (name not in there or (kind == "tag") != (there[name] == "tag"))
    ]


def _in_turn(tables: list[TableOperator | TableTagger]) -> tuple[TableOperator | TableTagger, ...]:
    """`tables` in their order, but each after those whose columns it reads, and first those that others build on or
    that drop nothing: so of a sample that is dropped, as much is known as of the others.
    """
    left, found = list(tables), []
    while left:
        made = {f"{kind}.{one.name}" for one in left for kind in ("tag", "score")}
        ready = [one for one in left if not made & _reads(one)]
        if not ready:
            circle = ", ".join(one.name for one in left)
            raise StageError(f"operators: {circle} each read what another of them says; let one do without")
        read = {name for one in left for name in _reads(one)}
        found.append(min(ready, key=lambda one: not hasattr(one, "tag_table") and f"score.{one.name}" not in read))
        left.remove(found[-1])
    return tuple(found)


def _reads(one: TableOperator | TableTagger) -> set[str]:
    return {*one.needs, *getattr(one, "may", ())}


def _table_kind(one: TableOperator | TableTagger) -> str:
    return "tag" if hasattr(one, "tag_table") else "sample"


def _asked(config: OperatorsConfig) -> dict[str, OptIn]:
    asked = {name: getattr(config, name) for name in OPT_IN}
    return {name: one for name, one in asked.items() if one is not None}


def _able(judges: list[Any], method: str) -> tuple[Any, ...]:
    return tuple(one for one in judges if hasattr(one, method))


def absolute(config: OperatorsConfig) -> OperatorsConfig:
    """The same for a process in another folder."""
    return config.model_copy(update={name: one.absolute() for name, one in _asked(config).items()})


def runs_models(config: OperatorsConfig) -> bool:
    """Whether an operator that judges runs a neural network."""
    return any(one.runs_model and not one.off_reason() for one in _asked(config).values())


def describe(config: OperatorsConfig, stage: Stage) -> dict[str, Any]:
    """What made the verdicts, by operator, as JSON values: versions, thresholds, content of models; no paths."""
    asked, settings = _asked(config), config.model_dump(mode="json")
    said: dict[str, Any] = {name: {"off": why} for name, why in stage.off.items()}
    judges: list[Any] = [
        *stage.single,
        *stage.captions,
        *stage.texts,
        *stage.tags,
        *stage.whole,
        *stage.crowds,
        *stage.tables,
    ]
    for one in judges:
        mine = asked.get(one.name)
        thresholds = settings.get(one.name, {}) if mine is None else {**mine.thresholds(), **mine.content()}
        said[one.name] = {"version": one.version, **thresholds}
    said |= {name: {"annotated": True} for name in stage.annotated}
    return {name: said[name] | ({"of": kind} if kind != "sample" else {}) for name, kind in stage.kinds.items()}


def scored_by(config: OperatorsConfig, stage: Stage) -> dict[str, str]:
    """For each operator whose scores are stored, what they depend on, as JSON; under "" what facts do."""
    said = {key: json.dumps(value) for key, value in scoring(config, stage).items()}
    names = stage.scored
    by = {name: " ".join(value for key, value in said.items() if key.split(".")[0] == name) for name in names}
    facts = " ".join(value for key, value in said.items() if key.split(".")[0] not in names)
    return {name: f"{facts} {value}" for name, value in by.items()} | {"": facts}


def scoring(config: OperatorsConfig, stage: Stage) -> dict[str, Any]:
    """The part of `describe` that scores depend on: all but thresholds."""
    asked = _asked(config)
    judges: list[Any] = [*stage.single, *stage.captions, *stage.tags]
    said: dict[str, Any] = {one.name: one.version for one in judges}
    said |= {"side": SIDE, "limits": list(stage.broken.limits), "hashes": NearDuplicate.version}
    said |= {f"{one.name}.fine": FINE for one in judges if getattr(one, "fine", False)}
    contents = {name: asked[name].content() for name in said.keys() & asked.keys()}
    said |= {f"{name}.content": content for name, content in sorted(contents.items()) if content}
    return said
