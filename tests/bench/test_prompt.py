"""The prompt encoder against the pipeline, which pads one batch for the whole Qwen2.5-VL. Run with `make bench`."""

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import QwenImagePipeline
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from launch.make_encoders import make_tokenizer
from launch.words import english
from model.prompt import PromptEncoder
from tests.bench.report import record

TURNS = 7
PROMPTS = 64
TARGET = 1.3


def middling(folder: Path) -> QwenImagePipeline:
    """The pipeline's text parts, wide enough that arithmetic decides, saved to `folder` in the released layout."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 512},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
    )
    torch.manual_seed(0)
    whole = Qwen2_5_VLForConditionalGeneration(config).eval()
    whole.save_pretrained(folder / "text_encoder")
    return QwenImagePipeline(None, None, whole, tokenizer, None)


def prompts() -> list[str]:
    """Of log-normal length, in words, as captions are: a median near 50, a few of 200."""
    draw, words = random.Random(0), " ".join(english()).split()
    lengths = [max(1, min(200, round(draw.lognormvariate(3.9, 0.6)))) for _ in range(PROMPTS)]
    return [" ".join(draw.choices(words, k=length)) for length in lengths]


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def test_64_prompts_of_mixed_length_against_the_pipeline(tmp_path: Path) -> None:
    pipeline, texts = middling(tmp_path), prompts()
    encoder = PromptEncoder(tmp_path)

    def ours() -> list[torch.Tensor]:
        return encoder.encode(texts)

    @torch.inference_mode()
    def theirs() -> tuple[torch.Tensor, torch.Tensor]:
        return pipeline.encode_prompt(texts, device=torch.device("cpu"), max_sequence_length=1024)

    mine, (states, mask) = ours(), theirs()  # also warms both
    lengths = mask.sum(1).tolist()
    for row, other, length in zip(mine, states, lengths, strict=True):
        assert (row - other[:length]).abs().max() < 1e-4
    turns = [(seconds(ours), seconds(theirs)) for _ in range(TURNS)]
    taken, peer = (statistics.median(side) for side in zip(*turns, strict=True))
    print(f"\n{PROMPTS} prompts of {min(lengths)} to {max(lengths)} tokens, median {statistics.median(lengths):.0f},")
    print(f"{torch.get_num_threads()} threads, float32, median of {TURNS} turns")
    print(f"{'':16}{'ours':>10}{'pipeline':>10}{'ratio':>8}{'target':>8}")
    print(f"{'prompt encoder':16}{taken:>8.2f} s{peer:>8.2f} s{peer / taken:>7.2f}x{TARGET:>7.2f}x")
    result = {"ours": taken, "peer": peer, "ratio": peer / taken, "target": TARGET, "unit": "s"}
    record("model.json", {"prompt encoder": result})
