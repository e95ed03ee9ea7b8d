"""How long captions are, by the tokenizer that will encode them."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from producer.digest import hash_folder

_BATCH = 4096


class TokenizerError(ValueError):
    """There is no tokenizer in the folder."""


def fingerprint(folder: Path) -> str:
    """A hash of the tokenizer in `folder`; TokenizerError if it is not there."""
    if not folder.is_dir() or not (folder / "tokenizer_config.json").is_file():
        raise TokenizerError(f"encoder: {folder} holds no tokenizer_config.json; make or fetch the encoders")
    return hash_folder(folder)


def count_tokens(folder: Path, texts: Sequence[str]) -> list[int]:
    """Tokens of each text alone: no template, no special tokens, nothing cut."""
    tokenizer = _load(folder, (folder / "tokenizer_config.json").stat().st_mtime_ns)
    counts: list[int] = []
    for first in range(0, len(texts), _BATCH):
        encoded = tokenizer(list(texts[first : first + _BATCH]), add_special_tokens=False, verbose=False)
        counts += [len(ids) for ids in encoded["input_ids"]]
    return counts


@lru_cache(maxsize=1)
def _load(folder: Path, changed_ns: int) -> Any:
    """The tokenizer in `folder`, which is asked for a few thousand texts at a time."""
    # Here, since this import takes seconds and most of what reads settings never counts.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise TokenizerError(f"encoder: the tokenizer in {folder} does not load: {error}") from None
