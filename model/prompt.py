"""Prompts to what the MMDiT is conditioned on: the last hidden states of Qwen2.5-VL's language model.

The template's beginning is the same for every prompt and dropped from the result; its end stays, so that even an empty
prompt gives a few tokens.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.utils import logging as transformers_logging

# The released code's templates (pipeline_qwenimage.py, pipeline_qwenimage_edit.py); the report prints other words.
T2I_PREFIX = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
EDIT_PREFIX = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"


class PromptError(ValueError):
    """A prompt encoder's folder is missing or a prompt is too long."""


class PromptEncoder:
    """The text encoder and tokenizer in `root`, for text alone: only the language model is kept.

    A prompt of more than `max_tokens` tokens after the prefix is refused; diffusers' pipeline would cut it, and its end
    of turn with it. Prompts run `batch` at a time in the order of their length, each batch padded to a multiple of
    `multiple` tokens: the shapes follow from the list of prompts alone.
    """

    def __init__(
        self,
        root: Path,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        max_tokens: int = 1024,
        batch: int = 16,
        multiple: int = 32,
    ) -> None:
        for name in ("text_encoder", "tokenizer"):
            if not (root / name).is_dir():
                raise PromptError(f"{root / name}: no such folder")
        self.max_tokens, self.batch, self.multiple = max_tokens, batch, multiple
        self.device = torch.device(device)
        self._tokenizer = Qwen2Tokenizer.from_pretrained(root / "tokenizer", local_files_only=True)
        self._net = _language_model(root / "text_encoder", dtype).to(self.device)
        self.width: int = self._net.config.hidden_size
        self.prefix: int = len(self._ids([""], T2I_PREFIX, "")[0])

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens that `encode` would give each prompt."""
        return [len(ids) - self.prefix for ids in self._ids(prompts, T2I_PREFIX, SUFFIX)]

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """The hidden states [tokens, e] of each prompt, of the encoder's dtype, on the CPU."""
        ids = self._ids(prompts, T2I_PREFIX, SUFFIX)
        for prompt, tokens in zip(prompts, ids, strict=True):
            if len(tokens) - self.prefix > self.max_tokens:
                raise PromptError(
                    f"prompt {prompt[:60]!r}... has {len(tokens) - self.prefix} tokens, at most {self.max_tokens} are "
                    "encoded: shorten it"
                )
        hidden: list[Tensor] = [torch.empty(0)] * len(prompts)
        for group in self._groups([len(tokens) for tokens in ids]):
            states = self._run([ids[k] for k in group])
            for k, row in zip(group, states, strict=True):
                hidden[k] = row[self.prefix : len(ids[k])].cpu()
        return hidden

    def _ids(self, prompts: Sequence[str], prefix: str, suffix: str) -> list[list[int]]:
        texts = [f"{prefix}{prompt}{suffix}" for prompt in prompts]
        return self._tokenizer(texts)["input_ids"] if texts else []

    def _groups(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        order = sorted(range(len(lengths)), key=lambda k: (lengths[k], k))
        for start in range(0, len(order), self.batch):
            yield order[start : start + self.batch]

    def _run(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states [b, t, e] of token lists, padded at the end: attention is causal, so nothing looks there."""
        longest = max(len(tokens) for tokens in ids)
        padded = torch.zeros(len(ids), -(-longest // self.multiple) * self.multiple, dtype=torch.long)
        for k, tokens in enumerate(ids):
            padded[k, : len(tokens)] = torch.tensor(tokens)
        return self._net(input_ids=padded.to(self.device), use_cache=False).last_hidden_state


def _language_model(folder: Path, dtype: torch.dtype) -> Any:
    """The Qwen2_5_VLTextModel of the Qwen2.5-VL in `folder`, after its final norm; vision tower and head are let go."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        whole = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype, local_files_only=True)
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
    return whole.model.language_model.requires_grad_(False).eval()
