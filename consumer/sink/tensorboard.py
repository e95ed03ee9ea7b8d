"""Reports as TensorBoard curves and images."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from consumer.metrics import CheckpointReport, Part, PicturesReport, Report, StepReport, ValidationReport

# Steps that a point of the curves by level and by bucket is the mean of: a step has few samples of each.
_WINDOW = 10


class TensorBoard:
    """Scalars under train/ and validation/, sheets under pictures/; a resumed run hides what it trains again."""

    def __init__(self, path: Path, resumed: int) -> None:
        self.writer = SummaryWriter(str(path), purge_step=resumed + 1 if resumed else None)
        self._window: dict[str, tuple[float, int]] = {}

    def __call__(self, report: Report) -> None:
        if isinstance(report, StepReport):
            self._step(report)
        elif isinstance(report, ValidationReport):
            self.writer.add_scalar("validation/loss", report.loss, report.step)
            for name, part in report.loss_by_level.items():
                self.writer.add_scalar(f"validation_loss_by_level/{name}", part.loss, report.step)
            self.writer.flush()
        elif isinstance(report, CheckpointReport):
            for name, value in saved(report).items():
                self.writer.add_scalar(f"checkpoint/{name}", value, report.step)
        else:
            self._pictures(report)

    def _step(self, report: StepReport) -> None:
        for name, value in scalars(report).items():
            self.writer.add_scalar(f"train/{name}", value, report.step)
        for phase, seconds in report.split.items():
            self.writer.add_scalar(f"seconds/{phase}", seconds, report.step)
        self._gather("loss_by_level", report.loss_by_level)
        self._gather("loss_by_bucket", report.loss_by_bucket)
        if report.step % _WINDOW == 0:
            for name, (total, samples) in self._window.items():
                self.writer.add_scalar(name, total / samples, report.step)
            self._window.clear()

    def _gather(self, kind: str, parts: dict[str, Part]) -> None:
        for name, part in parts.items():
            total, samples = self._window.get(f"{kind}/{name}", (0.0, 0))
            self._window[f"{kind}/{name}"] = total + part.loss * part.samples, samples + part.samples

    def _pictures(self, report: PicturesReport) -> None:
        with Image.open(report.path) as sheet:
            pixels = np.asarray(sheet.convert("RGB"))
        self.writer.add_image("pictures/average", pixels, report.step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def scalars(report: StepReport) -> dict[str, float]:
    """A step's single numbers, by the names that curves have."""
    found = {
        "loss": report.loss,
        "rate": report.rate,
        "gradient_norm": report.gradient_norm,
        "applied": float(report.applied),
        "images_per_s": report.images_per_s,
        "tokens_per_s": report.tokens_per_s,
        "tflops_per_s": report.flops_per_s / 1e12,
        "data_wait_share": report.wait_share,
        "peak_memory_gb": report.peak_memory / 1e9,
        "seconds": report.seconds,
        "recipe_entry": float(report.entry),
    }
    shares = {"mfu": report.mfu, "hfu": report.hfu}
    return found | {name: share for name, share in shares.items() if share is not None}


def saved(report: CheckpointReport) -> dict[str, float]:
    """A save's numbers, by the names that curves have."""
    return {
        "seconds": report.seconds,
        "stall_s": report.stall_s,
        "gb": report.nbytes / 1e9,
        "published": float(report.published),
    }
