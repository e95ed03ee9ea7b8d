"""Prompts encode as the pipeline encodes them."""

from pathlib import Path

import pytest
import torch
from diffusers import QwenImagePipeline
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from model.prompt import EDIT_PREFIX, T2I_PREFIX, PromptEncoder, PromptError

PROMPTS = [
    "a cat",
    "",
    " ",
    "A red coffee cup on a saucer with a silver spoon, warm light from the left. " * 4,
    "\n\nstarts with line breaks {and} braces {}",
    "蓝色的天空写着“你好世界”。",
    "a photo of the moon " * 40,
]


@pytest.fixture(scope="module")
def pipeline(encoders: Path) -> QwenImagePipeline:
    """The pipeline with its text parts alone."""
    text_encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(encoders / "text_encoder", dtype=torch.float32)
    tokenizer = Qwen2Tokenizer.from_pretrained(encoders / "tokenizer")
    return QwenImagePipeline(None, None, text_encoder, tokenizer, None)


def test_prompts_of_mixed_length_encode_as_in_the_pipeline(encoders: Path, pipeline: QwenImagePipeline) -> None:
    ours = PromptEncoder(encoders, batch=3).encode(PROMPTS)
    with torch.inference_mode():
        theirs, mask = pipeline.encode_prompt(PROMPTS, device=torch.device("cpu"))
    assert mask is not None
    for mine, other, seen in zip(ours, theirs, mask.bool(), strict=True):
        assert mine.shape == other[seen].shape
        assert (mine - other[seen]).abs().max() < 1e-4


def test_the_template_is_the_pipelines_and_its_prefix_is_counted(encoders: Path, pipeline: QwenImagePipeline) -> None:
    encoder = PromptEncoder(encoders)
    assert pipeline.prompt_template_encode.startswith(T2I_PREFIX + "{}")
    assert encoder.prefix == pipeline.prompt_template_encode_start_idx == 34


def test_the_edit_templates_prefix_is_64_tokens(encoders: Path) -> None:
    tokenizer = Qwen2Tokenizer.from_pretrained(encoders / "tokenizer")
    assert len(tokenizer(EDIT_PREFIX)["input_ids"]) == 64


def test_lengths_are_those_of_the_encoding(encoders: Path) -> None:
    encoder = PromptEncoder(encoders)
    assert encoder.lengths(PROMPTS) == [len(states) for states in encoder.encode(PROMPTS)]
    assert encoder.lengths([""]) == [5]
    assert encoder.lengths([]) == []
    assert encoder.encode([]) == []


def test_the_same_list_gives_the_same_bits(encoders: Path) -> None:
    encoder = PromptEncoder(encoders, batch=2)
    again = PromptEncoder(encoders, batch=2)
    pairs = zip(encoder.encode(PROMPTS), again.encode(PROMPTS), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)


def test_a_prompt_beyond_the_limit_is_refused_with_both_numbers(encoders: Path) -> None:
    encoder = PromptEncoder(encoders, max_tokens=20)
    length = encoder.lengths(["cat " * 30])[0]
    with pytest.raises(PromptError, match=rf"'cat cat .* has {length} tokens, at most 20"):
        encoder.encode(["a dog", "cat " * 30])


def test_neither_vision_tower_nor_head_is_kept(encoders: Path) -> None:
    names = {name.split(".")[0] for name, _ in PromptEncoder(encoders)._net.named_parameters()}
    assert names == {"embed_tokens", "layers", "norm"}


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="text_encoder"):
        PromptEncoder(tmp_path)
