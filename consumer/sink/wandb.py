"""Reports to Weights & Biases, where someone asks for it: https://docs.wandb.ai."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from consumer.config import WandbConfig
from consumer.metrics import CheckpointReport, PicturesReport, Report, StepReport
from consumer.sink.tensorboard import saved, scalars


class WandbError(ValueError):
    """wandb is asked for and not installed."""


def check_wandb(config: WandbConfig) -> None:
    """WandbError where a project is set and wandb is not installed."""
    if config.project and importlib.util.find_spec("wandb") is None:
        raise WandbError(
            f"wandb.project: {config.project!r} is set and wandb is not installed; "
            "install it with: pip install 'inkstone[wandb]', or leave wandb.project empty"
        )


class Wandb:
    """One wandb run a training: `name` is its id, so that a resumed training goes on in the same curves.

    The step is an axis of its own: wandb's would drop the points of steps that are trained again.
    """

    def __init__(self, config: WandbConfig, name: str, folder: Path, settings: dict[str, Any]) -> None:
        check_wandb(config)
        self._wandb = importlib.import_module("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            project=config.project,
            entity=config.entity,
            mode=config.mode,
            id=name,
            name=name,
            dir=str(folder),
            config=settings,
            resume="allow",
            settings=self._wandb.Settings(init_timeout=config.timeout_s),
        )
        self._run.define_metric("*", step_metric="step")

    def __call__(self, report: Report) -> None:
        if isinstance(report, PicturesReport):
            values: dict[str, Any] = {"pictures": self._wandb.Image(report.path)}
        elif isinstance(report, StepReport):
            values = {f"train/{name}": value for name, value in scalars(report).items()}
            values |= {f"loss_by_level/{name}": part.loss for name, part in report.loss_by_level.items()}
            values |= {f"loss_by_bucket/{name}": part.loss for name, part in report.loss_by_bucket.items()}
        elif isinstance(report, CheckpointReport):
            values = {f"checkpoint/{name}": value for name, value in saved(report).items()}
        else:
            values = {"validation/loss": report.loss}
            values |= {f"validation_loss_by_level/{name}": part.loss for name, part in report.loss_by_level.items()}
        self._run.log({"step": report.step, **values})

    def close(self) -> None:
        self._run.finish()
