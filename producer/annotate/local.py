"""transformers' Qwen2.5-VL in this process, from a folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from producer.annotate.config import AnnotateConfig, AnnotateError, LocalConfig
from producer.annotate.model import Said, Talk, Unanswered
from producer.digest import hash_folder

_CLASS = "Qwen2_5_VLForConditionalGeneration"
_PICTURE = "<|image_pad|>"


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
        from safetensors import SafetensorError
        from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        from model.pretrained import quietly_loading

        self._config, local = config, config.local
        torch.set_num_threads(local.threads)
        only: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        kind: Any = Qwen2_5_VLForConditionalGeneration
        try:
            # The whole processor would also want the one for videos, and with it torchvision.
            self._tokenizer: Any = AutoTokenizer.from_pretrained(local.model, padding_side="left", **only)
            self._pictures: Any = Qwen2VLImageProcessorPil.from_pretrained(local.model, local_files_only=True)
            with quietly_loading():
                net, found = kind.from_pretrained(
                    local.model,
                    dtype=getattr(torch, local.dtype),
                    use_safetensors=True,
                    output_loading_info=True,
                    **only,
                )
            self._net = net.to(local.device).eval()
        except (OSError, KeyError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
            raise AnnotateError(f"annotate.local.model: {local.model} does not load: {error}") from None
        if missing := sorted(found["missing_keys"]):
            raise AnnotateError(f"annotate.local.model: {local.model} lacks {len(missing)} weights, first {missing[0]}")

    def ask(self, talks: Sequence[Talk]) -> list[Said | Unanswered]:
        """An answer for each of `talks`, all of which have a picture or none has."""
        import torch

        config, inputs = self._config, self._inputs(talks)
        if config.temperature:
            torch.manual_seed(0)
        with torch.inference_mode():
            out = self._net.generate(
                **inputs,
                max_new_tokens=config.max_tokens,
                do_sample=config.temperature > 0,
                temperature=config.temperature or None,
                top_k=None,
                top_p=None,
                repetition_penalty=1.0,
            )
        ends, shown = set(_ends(self._net.generation_config.eos_token_id)), inputs["input_ids"].shape[1]
        said: list[Said | Unanswered] = []
        for row, mask in zip(out[:, shown:].tolist(), inputs["attention_mask"].tolist(), strict=True):
            stop = next((k for k, token in enumerate(row) if token in ends), None)
            text = self._tokenizer.decode(row[:stop], skip_special_tokens=True)
            counts = {"prompt_tokens": sum(mask), "answer_tokens": len(row) if stop is None else stop + 1}
            said.append(Said(text, "length" if stop is None else "stop", **counts))
        return said

    def _inputs(self, talks: Sequence[Talk]) -> dict[str, Any]:
        """What the model takes, as Qwen2.5-VL's processor makes it: a picture's token once for each of its patches."""
        import torch

        pictures = [talk.picture for talk in talks if talk.picture is not None]
        seen = dict(self._pictures(images=pictures, return_tensors="pt")) if pictures else {}
        counts = iter((seen["image_grid_thw"].prod(-1) // self._pictures.merge_size**2).tolist() if pictures else ())
        texts = []
        for talk in talks:
            text = self._tokenizer.apply_chat_template(_messages(talk), tokenize=False, add_generation_prompt=True)
            texts.append(text.replace(_PICTURE, _PICTURE * next(counts), 1) if talk.picture is not None else text)
        tokens = dict(self._tokenizer(texts, padding=True, return_tensors="pt"))
        inputs = seen | {name: tokens[name] for name in ("input_ids", "attention_mask")}
        if pictures:
            token = self._tokenizer.convert_tokens_to_ids(_PICTURE)
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == token).to(torch.int32)
            inputs["pixel_values"] = inputs["pixel_values"].to(self._net.dtype)
        return {name: value.to(self._net.device) for name, value in inputs.items()}

    def close(self) -> None:
        """Nothing is held that the process does not end with."""


def identity(local: LocalConfig) -> dict[str, Any]:
    """What answers depend on: the folder's content and how it is computed."""
    return {"local": hash_folder(local.model), "dtype": local.dtype}


def check_folder(folder: Path) -> None:
    """AnnotateError unless `folder` holds a Qwen2.5-VL with its tokenizer and processor."""
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise AnnotateError(f"annotate.local.model: {folder} {what}; give the folder of a Qwen2.5-VL as it is released")
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
