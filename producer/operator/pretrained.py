"""Models that operators take from folders as transformers saves them: checked before anything is scored, loaded safely.

Weights are safetensors, code in a folder never runs, and nothing is asked of a network. A model runs on the first CUDA
device in bfloat16 where there is one, elsewhere on the CPU in float32: scores of both kinds of machines differ, by up
to 0.02 in tests; those of one kind do not.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from producer.digest import hash_folder

# Left out, whether code in the folder may run would be asked at the terminal.
ONLY_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_PICTURES = ("preprocessor_config.json", "processor_config.json")
_WORDS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model")


class ModelError(ValueError):
    """A setting names a folder that is missing, holds another model, lacks files, or does not fit its use."""


def check_model(setting: str, folder: Path, kinds: tuple[str, ...], *, words: bool = False) -> dict[str, Any]:
    """The config.json of the model in `folder`, whose class is one of `kinds`; ModelError if it will not load.

    A kind that begins with "For" is any class for that task. `setting` is the one that names the folder. With `words`
    it needs a tokenizer, too.
    """
    said = read_config(setting, folder)
    found = said.get("architectures") or []
    if not isinstance(found, list) or not any(_is_one(str(name), kinds) for name in found):
        wanted = " or ".join(f"a {kind}" for kind in kinds)
        raise ModelError(f"{setting}: {folder} holds {found or 'no model'}, not {wanted}; give the folder of one")
    for files, what in ((_PICTURES, "how pictures are prepared"), (_WORDS if words else (), "a tokenizer")):
        if files and not any((folder / name).is_file() for name in files):
            raise ModelError(f"{setting}: {folder} lacks {what}, {' or '.join(files)}; copy it from the release")
    check_weights(setting, folder)
    return said


def _is_one(name: str, kinds: tuple[str, ...]) -> bool:
    return name in kinds or name.endswith(tuple(kind for kind in kinds if kind.startswith("For")))


def read_config(setting: str, folder: Path) -> dict[str, Any]:
    """The config.json in `folder`; ModelError, naming `setting`, if there is none."""
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise ModelError(f"{setting}: {folder} {what}; give the folder as transformers saves it")
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{setting}: {folder} holds no readable config.json ({error})") from None
    if not isinstance(said, dict):
        raise ModelError(f"{setting}: {folder} holds a config.json that is no object")
    return said


def check_weights(setting: str, folder: Path) -> None:
    """ModelError, naming `setting`, unless `folder` holds whole .safetensors files, all that an index of them names."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{setting}: {folder} lacks .safetensors weights; others are not read, since they can run code: "
            "save the model once with transformers' save_pretrained"
        )
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise ModelError(f"{setting}: {index} is no index of weights; fetch it again") from None
        if missing := sorted(named - {file.name for file in files}):
            raise ModelError(f"{setting}: {folder} lacks {missing}, which {index.name} names; fetch them again")
    for file in files:
        try:
            with safe_open(file, "numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{setting}: {file} is damaged ({error}); fetch it again") from None


def content_hash(folder: Path) -> str:
    """The hash of the files in `folder`, read once a process for each state of them."""
    state = [(entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in folder.iterdir()]
    return _hash(folder, tuple(sorted(state)))


@lru_cache(maxsize=64)
def _hash(folder: Path, state: tuple[tuple[str, int, int], ...]) -> str:
    return hash_folder(folder)


def load_model(kind: Any, folder: Path) -> Any:
    """The model of class `kind` in `folder`, ready to judge; ModelError where its files lack weights of the class."""
    model, said = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **ONLY_LOCAL)
    # They would be drawn by chance, with a warning that nobody reads in a worker.
    if missing := sorted(said["missing_keys"]):
        raise ModelError(
            f"{folder}: its .safetensors lack {len(missing)} weights of {type(model).__name__}: {missing[:3]}"
        )
    return placed(model)


def placed(model: Any) -> Any:
    """`model` ready to judge on this machine's device."""
    import torch

    if torch.cuda.is_available():
        return model.eval().to("cuda", torch.bfloat16)
    return model.eval().float()


def prepare(processor: Any, pictures: list[Any], model: Any) -> dict[str, Any]:
    """RGB pictures [y, x, 3] as `model` takes them, on its device and in its precision."""
    # Said, since a picture three pixels high looks like one whose colours come first.
    made = processor(images=pictures, return_tensors="pt", input_data_format="channels_last")
    return move(made, model)


def move(inputs: Any, model: Any) -> dict[str, Any]:
    """Tensors on the device of `model`; those of fractions in its precision."""
    return {
        name: one.to(model.device, model.dtype) if one.is_floating_point() else one.to(model.device)
        for name, one in inputs.items()
    }
