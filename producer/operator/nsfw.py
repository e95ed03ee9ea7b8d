"""NSFW: pictures that an image classifier of the user's choice calls unsafe. There is none without its path."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from producer.operator.judgement import NOT_JUDGED, Judgement, Sample, Score


class NsfwError(ValueError):
    """The classifier's folder is missing, is no image classifier, or knows none of the labels asked for."""


class NsfwConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    model: Path | None = None  # a folder with an image classifier as transformers saves it; none: the operator is off
    unsafe: tuple[str, ...] = ("nsfw",)  # the classifier's labels that count
    max: float = Field(default=0.5, ge=0, le=1)  # probability; even odds, since no published set calibrates it


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
        self._labels = _labels(config.model)
        unknown = sorted(set(config.unsafe) - set(self._labels))
        if unknown or not config.unsafe:
            raise NsfwError(f"operators.nsfw.unsafe: {unknown}; {config.model} knows {sorted(self._labels)}")

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        import torch

        pictures = [sample.picture.pixels for sample in samples if sample.picture]
        if not pictures:
            return [Score(None) for _ in samples]
        processor, model = self._load()
        with torch.inference_mode():
            shares = model(**processor(images=pictures, return_tensors="pt")).logits.double().softmax(-1)
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

            # Left out, whether code in the folder may run would be asked at the terminal.
            only = {"local_files_only": True, "trust_remote_code": False}
            processor = AutoImageProcessor.from_pretrained(self._folder, **only)
            model = AutoModelForImageClassification.from_pretrained(self._folder, use_safetensors=True, **only)
            self._loaded = processor, model.eval()
        return self._loaded


def _labels(folder: Path) -> dict[str, int]:
    """The labels of the classifier in `folder` and their numbers."""
    try:
        said = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise NsfwError(f"operators.nsfw.model: {folder} holds no readable config.json ({error})") from None
    kinds = said.get("architectures") or []
    if not any(kind.endswith("ForImageClassification") for kind in kinds):
        raise NsfwError(f"operators.nsfw.model: {folder} holds {kinds or 'nothing'}, no image classifier")
    if not (folder / "preprocessor_config.json").exists() or not list(folder.glob("*.safetensors")):
        raise NsfwError(f"operators.nsfw.model: {folder} lacks preprocessor_config.json or .safetensors weights")
    return {name: int(number) for number, name in said.get("id2label", {}).items()}
