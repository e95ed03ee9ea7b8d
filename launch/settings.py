"""The one tree of settings that every command reads, and the command line they share."""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, Field, model_validator

from consumer.config import (
    AuditConfig,
    CheckpointConfig,
    EmaConfig,
    PicturesConfig,
    PreflightConfig,
    ProfileConfig,
    TrainConfig,
    WandbConfig,
)
from consumer.endings import ENDINGS, Cause, classify
from consumer.guard import GuardConfig
from consumer.schedule import ScheduleConfig
from consumer.sink.prometheus import PrometheusConfig
from consumer.source.producers import PullConfig
from consumer.watchdog import WatchdogConfig
from launch.config import load, show
from launch.farewell import leave, say
from launch.sample_config import SampleConfig
from model.config import FlowConfig, MMDiTConfig, RecomputeConfig
from parallel.config import MeshConfig, OptimConfig
from producer.annotate.config import AnnotateConfig
from producer.cache import CacheConfig
from producer.curate import CurateConfig
from producer.encoder_config import EncoderConfig
from producer.fleet_config import FleetConfig
from producer.operator.stage import OperatorsConfig
from producer.recipe import RecipeConfig
from producer.source.reader import SourceConfig


class RunConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    dir: Path  # where everything of this run is written; other paths usually start with ${run.dir}
    seed: int = Field(default=0, ge=0, lt=2**63)  # of the plan, the weights and every draw


class Settings(BaseModel, frozen=True, strict=True, extra="forbid"):
    """A section a component."""

    run: RunConfig
    source: SourceConfig
    curate: CurateConfig
    operators: OperatorsConfig = Field(default_factory=OperatorsConfig)
    annotate: AnnotateConfig = Field(default_factory=AnnotateConfig)
    recipe: RecipeConfig
    encoder: EncoderConfig
    cache: CacheConfig
    fleet: FleetConfig
    pull: PullConfig
    model: MMDiTConfig
    recompute: RecomputeConfig = Field(default_factory=RecomputeConfig)
    mesh: MeshConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    flow: FlowConfig = Field(default_factory=FlowConfig)
    train: TrainConfig
    checkpoint: CheckpointConfig
    ema: EmaConfig
    audit: AuditConfig = Field(default_factory=AuditConfig)
    guard: GuardConfig = Field(default_factory=GuardConfig)
    pictures: PicturesConfig = Field(default_factory=PicturesConfig)
    preflight: PreflightConfig = Field(default_factory=PreflightConfig)
    watchdog: WatchdogConfig = Field(default_factory=WatchdogConfig)
    profile: ProfileConfig = Field(default_factory=ProfileConfig)
    prometheus: PrometheusConfig = Field(default_factory=PrometheusConfig)
    wandb: WandbConfig = Field(default_factory=WandbConfig)
    sample: SampleConfig

    @model_validator(mode="after")
    def _schedule_covers(self) -> "Settings":
        if self.schedule.kind != "constant" and self.schedule.total_steps < self.train.steps:
            raise ValueError(
                f"schedule.total_steps: {self.schedule.total_steps} ends before train.steps {self.train.steps}; "
                "make it at least as many"
            )
        return self

    @model_validator(mode="after")
    def _encodes_what_it_chooses(self) -> "Settings":
        if self.recipe.max_text_tokens > self.encoder.max_text_tokens:
            raise ValueError(
                f"recipe.max_text_tokens: {self.recipe.max_text_tokens} lets captions through that "
                f"encoder.max_text_tokens {self.encoder.max_text_tokens} rejects; make it at most "
                f"{self.encoder.max_text_tokens}"
            )
        return self

    @model_validator(mode="after")
    def _waits_within_the_mesh(self) -> "Settings":
        if self.pull.wait_s >= self.mesh.timeout_s:
            raise ValueError(
                f"pull.wait_s: {self.pull.wait_s:g} s for a unit outlasts mesh.timeout_s {self.mesh.timeout_s:g} s, "
                "after which the other ranks give up; make it less"
            )
        if 0 < self.watchdog.hang_s <= self.pull.wait_s:
            raise ValueError(
                f"watchdog.hang_s: {self.watchdog.hang_s:g} s would take a wait for data, pull.wait_s "
                f"{self.pull.wait_s:g} s, for a hang; make it more"
            )
        return self


Options = Callable[[argparse.ArgumentParser], None]


def command_line(doc: str | None, options: Options | None = None) -> tuple[Settings, argparse.Namespace]:
    """Parse `CONFIG [key.path=value ...] [--show]` and what `options` adds; --show prints the tree and ends."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings laid over the file's")
    parser.add_argument("--show", action="store_true", help="print the resolved settings and end")
    if options:
        options(parser)
    arguments = parser.parse_intermixed_args()
    settings = load(Settings, arguments.config, arguments.overrides)
    if arguments.show:
        print(show(settings))
        sys.exit(0)
    return settings, arguments


def guarded(main: Callable[[], int | None]) -> None:
    """Run a command: a wrong setting or input ends it with one message and its code, Ctrl-C with 130, no traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        code = main() or 0
    except (ValueError, OSError) as error:
        if not _foreseen(error):
            raise
        say(error)
        code = leave(classify(error), at_once=True)
    except KeyboardInterrupt:
        code = ENDINGS[Cause.INTERRUPTED].code
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _foreseen(error: Exception) -> bool:
    """True for errors of our own naming and missing files; a bare ValueError is a bug and keeps its traceback."""
    return isinstance(error, OSError) or type(error) is not ValueError
