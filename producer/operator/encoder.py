"""Encoders of pictures and words in one space, as transformers' CLIP and SigLIP: one copy a process, one embedding a
picture, shared by all operators that name the same folder.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from producer.operator.judgement import Sample
from producer.operator.pretrained import ONLY_LOCAL, ModelError, check_model, load_model, move, prepare

ENCODERS = ("SiglipModel", "Siglip2Model", "ChineseCLIPModel", "CLIPModel")
# Tokens of a caption that the released models were trained with; the rest is not read.
_READ = {"ChineseCLIPModel": 52, "CLIPModel": 77}  # the others say it: text_config.max_position_embeddings


class Encoder:
    """The encoder in a folder. Weights are loaded with the first embedding, ModelError comes at once.

    Embeddings are float32 of unit length. A batch has one shape whatever its captions, so that it gives the same bits
    again.
    """

    def __init__(self, setting: str, folder: Path, kinds: tuple[str, ...] = ENCODERS, *, words: bool = False) -> None:
        """Check the folder that `setting` names; `kinds` are the classes it may hold."""
        said = check_model(setting, folder, kinds, words=words)
        self.kind = next(kind for kind in kinds if kind in said["architectures"])
        self.folder = folder.resolve()

    @property
    def width(self) -> int:
        """Numbers in an embedding."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.folder, **ONLY_LOCAL)
        # Of configs, what equals the class's default may be left out of the file.
        return int(config.vision_config.hidden_size if self.kind.startswith("Siglip") else config.projection_dim)

    def embed(self, samples: Sequence[Sample]) -> list[np.ndarray | None]:
        """The embedding of each sample's picture as decoded, None without one; made once a sample, in one batch."""
        key = f"embedding of {self.folder}"
        todo = [one for one in samples if one.picture is not None and key not in one.memo]
        if todo:
            made = self.pictures([one.picture.pixels for one in todo if one.picture is not None])
            for one, embedding in zip(todo, made, strict=True):
                one.memo[key] = embedding
        return [one.memo.get(key) for one in samples]

    def pictures(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Embeddings [n, width] of pictures, RGB uint8 [y, x, 3], prepared as the folder's processor says."""
        import torch

        processor, _, model = _loaded(self.kind, self.folder)
        with torch.inference_mode():
            return _unit(model.get_image_features(**prepare(processor, list(pixels), model)))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings [n, width] of texts, each cut to what the model reads."""
        import torch

        _, tokenizer, model = _loaded(self.kind, self.folder)
        words = list(texts)
        length = _READ.get(self.kind) or model.config.text_config.max_position_embeddings
        if self.kind.startswith("Siglip"):
            # Both releases were trained on small letters and on rows filled up to their end, which is not masked.
            words = [one.lower() for one in words]
        inputs = tokenizer(words, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        if self.kind.startswith("Siglip"):
            inputs = {"input_ids": inputs["input_ids"]}
        with torch.inference_mode():
            return _unit(model.get_text_features(**move(inputs, model)))


@lru_cache(maxsize=4)
def _loaded(kind: str, folder: Path) -> tuple[Any, Any, Any]:
    """The processor, tokenizer and model in `folder`: once a process, whoever asks."""
    # Here, since these imports take seconds and only workers that judge need them.
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(folder, **ONLY_LOCAL)
    tokenizer: Any
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **ONLY_LOCAL)
    except (OSError, ValueError, KeyError):
        tokenizer = _no_words
    return processor, tokenizer, load_model(getattr(transformers, kind), folder)


def _no_words(*_: Any, **__: Any) -> Any:
    raise ModelError("this encoder's folder holds no tokenizer that loads, and words are to be embedded")


def _unit(features: Any) -> np.ndarray:
    pooled = features.pooler_output.float()
    unit: np.ndarray = (pooled / pooled.norm(dim=-1, keepdim=True).clamp_min(1e-12)).cpu().numpy()
    return unit
