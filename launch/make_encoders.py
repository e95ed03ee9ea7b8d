"""Write small encoders in the layout of the released ones: real classes, a real tokenizer, a VAE that keeps pictures.

    python launch/make_encoders.py OUT [--captions FILE_OR_DIR ...] [--pictures DIR]

OUT gets vae/, text_encoder/, tokenizer/ and scheduler/. For the released weights point `encoder.root` at their folder
instead. The same inputs give the same bytes; where OUT already holds what these inputs give, nothing is done.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import tokenizers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from launch import tiny_vae, words
from model.template import EDIT_PREFIX, SUFFIX, T2I_PREFIX

# Qwen2.5's, in the order of their ids; the second group is not special to transformers.
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ADDED = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
# Qwen2.5-VL-Instruct's.
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in "
    "content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}"
    "Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == "
    "'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}"
    "Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 4096  # at most; merges end where no pair is left
WIDTH = 64  # of the text encoder
SIDE = 256  # pixels a side of the pictures that the VAE is fitted to
# Photographs that scikit-image and scikit-learn carry.
PHOTOGRAPHS = (
    (
        "skimage",
        "data",
        ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "rocket.jpg"),
    ),
    ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
)
STAMP = "made.json"


class EncodersError(ValueError):
    """The encoders cannot be made from what was given."""


def make(out: Path, captions: Sequence[str] = (), pictures: Path | None = None) -> bool:
    """Write the four folders to `out`; False if they are there already, made from the same inputs."""
    photographs = _photographs(pictures)
    stamp = _stamp(captions, photographs)
    if (out / STAMP).is_file() and json.loads((out / STAMP).read_text()) == stamp:
        return False
    if out.exists() and any(out.iterdir()) and not (out / STAMP).is_file():
        raise EncodersError(f"{out}: holds files that this command did not write; give another folder")
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    transformers.utils.logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokenizer = make_tokenizer(captions)
        tokenizer.save_pretrained(aside / "tokenizer")
        _text_encoder(tokenizer).save_pretrained(aside / "text_encoder")
        tiny_vae.build(photographs).save_pretrained(aside / "vae")
        scheduler().save_config(aside / "scheduler")
        (aside / STAMP).write_text(json.dumps(stamp, indent=2))
        if out.exists():
            shutil.rmtree(out)
        os.replace(aside, out)
    finally:
        torch.set_num_threads(threads)
        shutil.rmtree(aside, ignore_errors=True)
    return True


def make_tokenizer(captions: Sequence[str] = ()) -> Qwen2Tokenizer:
    """A byte-level BPE as Qwen2.5's, trained on the templates, a small word list and `captions`.

    Each word of the templates becomes one token, as with the released tokenizer: diffusers drops a fixed number of
    tokens (34, or 64 for edits) ahead of the prompt.
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Often enough that the templates' words are merged whole before the vocabulary is full.
    templates = [text for text in (T2I_PREFIX, EDIT_PREFIX, SUFFIX, "Picture 1: ") for _ in range(10_000)]
    trained.train_from_iterator([*templates, *words.english(), *words.chinese(), *captions], trainer)
    model: Any = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    added = {token: len(model["vocab"]) + n for n, token in enumerate(SPECIAL + ADDED)}
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"] | added,
        merges=merges,
        extra_special_tokens=list(SPECIAL[1:]),
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=131072,
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED])
    return tokenizer


def _text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL, two layers deep, drawn from a fixed seed."""
    tokens = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        # Keeps the size of what passes a layer, so that attention mixes tokens though nothing was trained.
        "initializer_range": WIDTH**-0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [1],
    }
    ids: dict[str, Any] = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen2_5_VLForConditionalGeneration(config).eval()


def scheduler() -> Any:
    """The released FlowMatchEulerDiscreteScheduler."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
        time_shift_type="exponential",
    )


def _photographs(folder: Path | None) -> list[np.ndarray]:
    """Squares [SIDE, SIDE, 3] within [-1, 1] from the pictures in `folder`, or from installed packages' samples."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder else _installed()
    squares = []
    for file in files:
        with Image.open(file) as image:
            width, height = image.size
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            box = (left, top, left + side, top + side)
            square = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box)
        squares.append(np.asarray(square, np.float64) / 127.5 - 1)
    if not squares:
        raise EncodersError(
            f"{folder or 'scikit-image and scikit-learn'}: no pictures to fit the VAE to; "
            "install the extra `smoke` or give --pictures a folder of images"
        )
    return squares


def _installed() -> list[Path]:
    files = []
    for package, inner, names in PHOTOGRAPHS:
        spec = importlib.util.find_spec(package)
        roots = [Path(root) / inner for root in spec.submodule_search_locations or ()] if spec else []
        files += [root / name for root in roots for name in names if (root / name).is_file()]
    return files


def _stamp(captions: Sequence[str], photographs: Sequence[np.ndarray]) -> dict[str, str]:
    """What the bytes depend on."""
    sources = [Path(file).read_bytes() for file in (__file__, tiny_vae.__file__, words.__file__)]
    inputs = [*sources, *(caption.encode() for caption in captions), *(square.tobytes() for square in photographs)]
    digest = hashlib.sha256()
    for item in inputs:
        digest.update(hashlib.sha256(item).digest())
    versions = {module.__name__: module.__version__ for module in (diffusers, tokenizers, torch, transformers)}
    return {"inputs": digest.hexdigest(), **versions}


def read_captions(paths: Sequence[Path]) -> Iterator[str]:
    """The lines of text files and of the .txt members of tars, in folders too; what is not UTF-8, and a tar from where
    it is damaged on, is passed over.
    """
    for path in paths:
        if not path.exists():
            raise EncodersError(f"{path}: no such file or folder of captions")
    inside = [sorted(path.rglob("*")) if path.is_dir() else [path] for path in paths]
    for path in (file for files in inside for file in files if file.suffix in (".tar", ".txt")):
        for raw in _members(path) if path.suffix == ".tar" else path.read_bytes().splitlines():
            try:
                yield raw.decode()
            except UnicodeDecodeError:
                continue


def _members(path: Path) -> Iterator[bytes]:
    # A raw crawl has such tars: curation counts them, and here a few captions less make no difference.
    with contextlib.suppress(tarfile.ReadError), tarfile.open(path) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.name.endswith(".txt") else None
            if stream:
                yield from stream.read().splitlines()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--captions", type=Path, nargs="+", default=[], metavar="FILE", help="text files, tars, folders"
    )
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="images to fit the VAE to")
    arguments = parser.parse_args()
    try:
        made = make(arguments.out, list(read_captions(arguments.captions)), arguments.pictures)
    except (EncodersError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"encoders {'written to' if made else 'already in'} {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
