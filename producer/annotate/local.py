"""transformers' Qwen2.5-VL in this process, from a folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from producer.annotate.config import AnnotateConfig, AnnotateError, LocalConfig
from producer.annotate.model import Said, Talk, Unanswered
from producer.digest import hash_folder

_CLASS = "Qwen2_5_VLForConditionalGeneration"


class Local:
    """Asks the model in `config.local.model`. A batch of the same conversations gets the same answers, unless
    `temperature` draws them.
    """

    def __init__(self, config: AnnotateConfig) -> None:
        """Load the model; AnnotateError where the folder holds none."""
        assert config.local is not None
        check_folder(config.local.model)
        # Here, since they take seconds to import and settings are read by all.
        import torch
        from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

        self._config, local = config, config.local
        torch.set_num_threads(local.threads)
        only: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        dtype = getattr(torch, local.dtype)
        try:
            self._processor: Any = AutoProcessor.from_pretrained(local.model, **only)
            net = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                local.model, dtype=dtype, use_safetensors=True, **only
            )
            self._net: Any = net.to(local.device).eval()
        except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
            raise AnnotateError(f"annotate.local.model: {local.model} does not load: {error}") from None
        self._processor.tokenizer.padding_side = "left"

    def ask(self, talks: Sequence[Talk]) -> list[Said | Unanswered]:
        """An answer for each of `talks`, all of which have a picture or none has."""
        import torch

        config, net = self._config, self._net
        pictures = [talk.picture for talk in talks if talk.picture is not None]
        texts = [self._processor.apply_chat_template(_messages(talk), add_generation_prompt=True) for talk in talks]
        inputs = self._processor(text=texts, images=pictures or None, padding=True, return_tensors="pt").to(net.device)
        if config.temperature:
            torch.manual_seed(0)
        with torch.inference_mode():
            out = net.generate(
                **inputs,
                max_new_tokens=config.max_tokens,
                do_sample=config.temperature > 0,
                temperature=config.temperature or None,
                top_k=None,
                top_p=None,
            )
        tokenizer, shown = self._processor.tokenizer, inputs["input_ids"].shape[1]
        ends = set(_ends(net.generation_config.eos_token_id))
        said: list[Said | Unanswered] = []
        for row, mask in zip(out[:, shown:].tolist(), inputs["attention_mask"].tolist(), strict=True):
            stop = next((k for k, token in enumerate(row) if token in ends), None)
            text = tokenizer.decode(row[:stop], skip_special_tokens=True)
            finish = "length" if stop is None else "stop"
            answered = len(row) if stop is None else stop + 1
            said.append(Said(text, finish, prompt_tokens=sum(mask), answer_tokens=answered))  # type: ignore[arg-type]
        return said

    def close(self) -> None:
        """Nothing is held that the process does not end with."""


def identity(local: LocalConfig) -> dict[str, Any]:
    """What answers depend on: the folder's content and how it is computed."""
    return {"local": hash_folder(local.model), "dtype": local.dtype}


def check_folder(folder: Path) -> None:
    """AnnotateError unless `folder` holds a Qwen2.5-VL with its tokenizer and processor."""
    try:
        said = json.loads((folder / "config.json").read_text())
        kinds = said.get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise AnnotateError(f"annotate.local.model: {folder} holds no readable config.json ({error})") from None
    if _CLASS not in kinds:
        raise AnnotateError(f"annotate.local.model: {folder} holds {kinds or 'nothing'}, not {_CLASS}")
    needed = ("tokenizer_config.json", "preprocessor_config.json")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing or not list(folder.glob("*.safetensors")):
        raise AnnotateError(f"annotate.local.model: {folder} lacks {', '.join(missing) or '.safetensors weights'}")


def _messages(talk: Talk) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(talk.turns):
        content = [{"type": "text", "text": turn}]
        if number == 0 and talk.picture is not None:
            content.insert(0, {"type": "image"})
        messages.append({"role": "assistant" if number % 2 else "user", "content": content})
    return messages


def _ends(said: int | list[int] | None) -> list[int]:
    return said if isinstance(said, list) else [] if said is None else [said]
