"""Encoders of the released classes, tiny and random, in folders as their makers publish them."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["a", "cat", "dog", "red", "blue", "picture", "of", "two", "photo", *"一只猫狗红色蓝的图片"]
# Released models' embeddings share a direction that random ones do not: spread them, so that scores differ.
_SPREAD = 0.5
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**VISION, "vocab_size": 64}


def siglip(folder: Path) -> Path:
    """SigLIP 2 of one resolution: SiglipModel, 64 tokens, pictures squeezed to a square."""
    config = transformers.SiglipConfig(
        text_config={**TEXT, "max_position_embeddings": 64, "projection_size": 32, "pad_token_id": 0},
        vision_config={**VISION, "image_size": 32, "patch_size": 8},
    )
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return _save(folder, transformers.SiglipModel, config, ["<pad>", "<eos>"], "$A <eos>")


def naflex(folder: Path) -> Path:
    """SigLIP 2 of any resolution: Siglip2Model, pictures in patches of their own shape."""
    config = transformers.Siglip2Config(
        text_config={**TEXT, "max_position_embeddings": 64, "projection_size": 32, "pad_token_id": 0},
        vision_config={**VISION, "num_patches": 16, "patch_size": 8},
    )
    transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(folder)
    return _save(folder, transformers.Siglip2Model, config, ["<pad>", "<eos>"], "$A <eos>")


def chinese_clip(folder: Path) -> Path:
    config = transformers.ChineseCLIPConfig(
        text_config={**TEXT, "max_position_embeddings": 64, "pad_token_id": 0},
        vision_config={**VISION, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    transformers.ChineseCLIPImageProcessor(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return _save(folder, transformers.ChineseCLIPModel, config, ["[PAD]", "[CLS]", "[SEP]"], "[CLS] $A [SEP]")


def clip(folder: Path) -> Path:
    """CLIP, which LAION's aesthetic predictor stands on."""
    config = transformers.CLIPConfig(
        text_config={**TEXT, "max_position_embeddings": 77, "eos_token_id": 1, "pad_token_id": 0},
        vision_config={**VISION, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    return _save(folder, transformers.CLIPModel, config, ["<pad>", "<eos>"], "$A <eos>")


def _save(folder: Path, kind: Any, config: Any, special: list[str], template: str) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=_SPREAD)
    model.save_pretrained(folder)
    _tokenizer(special, template).save_pretrained(folder)
    return folder


def _tokenizer(special: list[str], template: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate([*special, "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    around = [(one, vocabulary[one]) for one in special[1:]]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=special[0], unk_token="<unk>", padding_side="right")
