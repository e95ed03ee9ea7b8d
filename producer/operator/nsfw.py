"""NSFW: pictures that an image classifier of the user's choice calls unsafe. There is none without its path."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from producer.operator.judgement import NOT_JUDGED, Judgement, OptIn, Sample, Score
from producer.operator.pretrained import ONLY_LOCAL, ModelError, check_model, content_hash, load_model, prepare


class NsfwConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 1
    runs_model, always = True, True
    model: Path | None = None  # a folder with an image classifier as transformers saves it; none: the operator is off
    unsafe: tuple[str, ...] = ("nsfw",)  # the classifier's labels that count
    max: float = Field(default=0.5, ge=0, le=1)  # probability; even odds, since no published set calibrates it

    def operator(self) -> "Nsfw":
        return Nsfw(self)

    def off_reason(self) -> str:
        return "" if self.model else "no classifier: set operators.nsfw.model to a folder"

    def content(self) -> dict[str, Any]:
        return {"model": content_hash(self.model), "unsafe": list(self.unsafe)} if self.model else {}


class Nsfw:
    """Score: the classifier's probability, 0 to 1, that one of the `unsafe` labels holds, seen at SIDE pixels at most.

    Higher means less safe. Kept up to `max`.
    """

    name = "nsfw"
    version = 1

    def __init__(self, config: NsfwConfig) -> None:
        """Check the folder; weights are loaded with the first batch."""
        assert config.model is not None
        self._folder, self._config = config.model, config
        self._loaded: tuple[Any, Any] | None = None
        said = check_model("operators.nsfw.model", config.model, ("ForImageClassification",))
        self._labels = _labels(said, config.model)
        unknown = sorted(set(config.unsafe) - set(self._labels))
        if unknown or not config.unsafe:
            raise ModelError(f"operators.nsfw.unsafe: {unknown}; {config.model} knows {sorted(self._labels)}")

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        import torch

        pictures = [sample.picture.pixels for sample in samples if sample.picture]
        if not pictures:
            return [Score(None) for _ in samples]
        processor, model = self._load()
        with torch.inference_mode():
            shares = model(**prepare(processor, pictures, model)).logits.double().softmax(-1)
        unsafe = shares[:, [self._labels[name] for name in self._config.unsafe]].sum(-1).tolist()
        left = iter(unsafe)
        return [Score(next(left) if sample.picture else None) for sample in samples]

    def judge(self, score: Score) -> Judgement:
        if score.value is None:
            return NOT_JUDGED
        safe = score.value <= self._config.max
        return Judgement(score.value, safe, "" if safe else f"{score.value:.2f}, above {self._config.max:g}")

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            # Here, since these imports take seconds and only workers that judge need them.
            from transformers import AutoImageProcessor, AutoModelForImageClassification

            processor = AutoImageProcessor.from_pretrained(self._folder, **ONLY_LOCAL)
            self._loaded = processor, load_model(AutoModelForImageClassification, self._folder)
        return self._loaded


def _labels(said: dict[str, Any], folder: Path) -> dict[str, int]:
    """The classifier's labels, each with its place among its outputs, as the folder's config.json says."""
    try:
        found = {str(name): int(number) for number, name in said["id2label"].items()}
    except (LookupError, ValueError, TypeError, AttributeError):
        raise ModelError(
            f"operators.nsfw.model: {folder}/config.json names no labels by number in id2label; write them there"
        ) from None
    return found
