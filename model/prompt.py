"""Prompts to what the MMDiT is conditioned on: the last hidden states of Qwen2.5-VL's language model.

The template's beginning is the same for every prompt and dropped from the result; its end stays, so that even an empty
prompt gives a few tokens. Attention is causal: that beginning is run once, and prompts attend to its keys and values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, Qwen2_5_VLConfig, Qwen2Tokenizer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from model.pretrained import load_part
from model.template import PICTURE_TOKEN, T2I, Template, fitted, grid_positions
from model.vision import Seen, Vision

# A prompt runs beside a longer one when it has at least this share of its tokens.
_NEAR = 0.8


class PromptError(ValueError):
    """A prompt encoder's folder is missing or a prompt cannot be encoded."""


class _Prefix(DynamicCache):
    """Keys and values of a prefix, put ahead of those of any number of prompts; it keeps nothing of theirs."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        layer: Any = self.layers[layer_idx]
        batch = key_states.shape[0]
        keys = torch.cat([layer.keys.expand(batch, -1, -1, -1), key_states], dim=-2)
        return keys, torch.cat([layer.values.expand(batch, -1, -1, -1), value_states], dim=-2)


@dataclass(frozen=True, eq=False)
class _Prompt:
    """A prompt's tokens from number `start` on; those before are the prefix that is run already."""

    ids: Tensor  # [t]
    positions: Tensor  # [3, t]
    start: int
    pictures: Tensor | None  # [p, e], what stands for the picture tokens


class PromptEncoder:
    """The text encoder and tokenizer in `root`; its vision tower is loaded when the first picture comes.

    A prompt of more than `max_tokens` tokens after the prefix, pictures aside, is refused; diffusers' pipeline would
    cut it, and its end of turn with it. Prompts of about one length run together, `batch` at most, padded to a multiple
    of `multiple` tokens: the shapes follow from the list of prompts alone.

    A group has `tokens` tokens at most, padding counted, if that is at least one prompt.

    `positions` of picture tokens: "grid" gives them rows and columns, which the released weights were made with;
    "line" counts on, as diffusers' edit pipelines do under transformers 5 (huggingface/diffusers issue 14194).
    """

    def __init__(
        self,
        root: Path,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        max_tokens: int = 1024,
        batch: int = 16,
        multiple: int = 8,
        tokens: int = 16384,
        positions: Literal["grid", "line"] = "grid",
    ) -> None:
        for name in ("text_encoder", "tokenizer"):
            if not (root / name).is_dir():
                raise PromptError(f"{root / name}: no such folder")
        self.max_tokens, self.batch, self.multiple, self.positions = max_tokens, batch, multiple, positions
        self.tokens = tokens
        self.device = torch.device(device)
        self._root, self._dtype = root, dtype
        self._tokenizer = Qwen2Tokenizer.from_pretrained(root / "tokenizer", local_files_only=True)
        self._config = Qwen2_5_VLConfig.from_pretrained(root / "text_encoder", local_files_only=True)
        # Of both layouts: model.layers... as released, model.language_model.layers... as newer transformers save.
        mine = r"^model\.(language_model\.)?(?!visual\.)"
        folder, config = root / "text_encoder", self._config.text_config
        self._net = load_part(Qwen2_5_VLTextModel, folder, config, mine, dtype).to(self.device)
        self._vision: Vision | None = None
        self._prefixes: dict[str, _Prefix] = {}
        self._picture_token = self._tokenizer.convert_tokens_to_ids(PICTURE_TOKEN)
        self.width: int = self._net.config.hidden_size
        self.prefix: int = len(self._ids([T2I.prefix])[0])

    def lengths(self, prompts: Sequence[str], template: Template = T2I, pictures: Sequence[int] = ()) -> list[int]:
        """Tokens that `encode` would give each prompt with so many pictures, those of the pictures not counted."""
        counts = pictures or [0] * len(prompts)
        texts = [template.text(prompt, [1] * count) for prompt, count in zip(prompts, counts, strict=True)]
        prefix = len(self._ids([template.prefix])[0])
        return [len(ids) - prefix - count for ids, count in zip(self._ids(texts), counts, strict=True)]

    @torch.inference_mode()
    def encode(
        self,
        prompts: Sequence[str],
        template: Template = T2I,
        pictures: Sequence[Sequence[Image.Image]] | None = None,
    ) -> list[Tensor]:
        """The hidden states [tokens, e] of each prompt, of the encoder's dtype, on the CPU.

        `pictures` [prompt] are RGB images of any size, for the templates of edits; one that comes twice is seen once.
        """
        pictures = pictures or [[]] * len(prompts)
        if len(pictures) != len(prompts):
            raise PromptError(f"{len(prompts)} prompts with pictures for {len(pictures)}: give a list for each")
        seen = self._see(pictures, template)
        texts = [template.text(p, [len(s.states) for s in shown]) for p, shown in zip(prompts, seen, strict=True)]
        prefix = self._ids([template.prefix])[0]
        tokens = self._ids(texts)
        rows = [self._prompt(*one, prefix) for one in zip(prompts, tokens, seen, strict=True)]
        hidden: list[Tensor] = [torch.empty(0)] * len(prompts)
        for group in self._groups(rows):
            states = self._run([rows[k] for k in group], template)
            for k, row in zip(group, states, strict=True):
                hidden[k] = row[len(prefix) - rows[k].start : len(rows[k].ids)].cpu()
        return hidden

    def most(self, width: int) -> int:
        """How many prompts of `width` tokens run together at most."""
        return min(self.batch, max(1, self.tokens // width))

    @torch.inference_mode()
    def rehearse(self, count: int, tokens: int) -> None:
        """Run `count` prompts of `tokens` tokens that say nothing: where they fit in memory, any others do."""
        ids = torch.zeros(tokens, dtype=torch.long)
        positions = torch.arange(self.prefix, self.prefix + tokens).expand(3, -1)
        self._run([_Prompt(ids, positions, self.prefix, None)] * count, T2I)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts))["input_ids"] if texts else []

    def _see(self, pictures: Sequence[Sequence[Image.Image]], template: Template) -> list[list[Seen]]:
        if not any(pictures):
            return [[] for _ in pictures]
        if self._vision is None:
            if not (self._root / "processor").is_dir():
                raise PromptError(f"{self._root / 'processor'}: no such folder, and there are pictures to encode")
            self._vision = Vision(self._root, self._config, self._dtype, self.device)
        distinct = {id(picture): picture for shown in pictures for picture in shown}
        seen = {
            key: self._vision.see(fitted(picture, template.area) if template.area else picture)
            for key, picture in distinct.items()
        }
        return [[seen[id(picture)] for picture in shown] for shown in pictures]

    def _prompt(self, prompt: str, tokens: list[int], seen: Sequence[Seen], prefix: list[int]) -> _Prompt:
        """What is run of a prompt. A leading line break joins the prefix's last token: then all of it is."""
        start = len(prefix) if tokens[: len(prefix)] == prefix else 0
        shown = [bool(seen) and token == self._picture_token for token in tokens]
        if sum(shown) != sum(len(picture.states) for picture in seen):
            raise PromptError(f"prompt {prompt[:60]!r}... has {PICTURE_TOKEN} in its words: take it out")
        length = len(tokens) - len(prefix) - sum(shown)
        if length > self.max_tokens:
            raise PromptError(
                f"prompt {prompt[:60]!r}... has {length} tokens, at most {self.max_tokens} are encoded: shorten it"
            )
        if self.positions == "grid":
            positions = grid_positions(shown[start:], [picture.grid for picture in seen], start)
        else:
            positions = torch.arange(start, len(tokens)).expand(3, -1)
        pictures = torch.cat([picture.states for picture in seen]) if seen else None
        return _Prompt(torch.tensor(tokens[start:]), positions, start, pictures)

    def _groups(self, rows: Sequence[_Prompt]) -> Iterator[list[int]]:
        """Numbers of rows that run together, the longest first: near enough in length that little is padded."""
        order = sorted(range(len(rows)), key=lambda k: (rows[k].start, -len(rows[k].ids), k))
        while order:
            first = rows[order[0]]
            least = _NEAR * self._width(first)
            alike = (
                k
                for k in order[: self.most(self._width(first))]
                if rows[k].start == first.start and self._width(rows[k]) >= least
            )
            group = list(alike)
            yield group
            order = order[len(group) :]

    def _width(self, row: _Prompt) -> int:
        return -(-len(row.ids) // self.multiple) * self.multiple

    def _run(self, rows: Sequence[_Prompt], template: Template) -> Tensor:
        """Hidden states [b, t, e], padded at the end: attention is causal, so nothing looks there."""
        width = max(self._width(row) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        positions = torch.zeros(3, len(rows), width, dtype=torch.long)
        for k, row in enumerate(rows):
            ids[k, : len(row.ids)] = row.ids
            positions[:, k, : len(row.ids)] = row.positions
        states = self._net.embed_tokens(ids.to(self.device))
        for k, row in enumerate(rows):
            if row.pictures is not None:
                states[k, (ids[k] == self._picture_token).to(self.device)] = row.pictures
        out = self._net(
            inputs_embeds=states,
            position_ids=positions.to(self.device),
            past_key_values=self._kept(template) if rows[0].start else None,
            use_cache=False,
        )
        return out.last_hidden_state

    def _kept(self, template: Template) -> _Prefix:
        """The keys and values of the template's prefix."""
        if template.prefix not in self._prefixes:
            cache = DynamicCache()
            ids = torch.tensor(self._ids([template.prefix]), device=self.device)
            self._net(input_ids=ids, past_key_values=cache, use_cache=True)
            layers: list[Any] = cache.layers
            self._prefixes[template.prefix] = _Prefix([(layer.keys, layer.values) for layer in layers])
        return self._prefixes[template.prefix]
