"""Pictures that an edit starts from, as they lie beside its target: NAME.ref1.jpg, NAME.ref2.png beside NAME.jpg."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from producer.source.shard import IMAGE_ENDINGS, Place

# The edit pipelines' own limit (README of QwenLM/Qwen-Image: one to three).
MOST = 3

_NAME = re.compile(r"(.+)\.ref([0-9]{1,4})\.([^.]+)", re.DOTALL)


class Named(NamedTuple):
    """What a reference's name says."""

    stem: str  # of its target
    number: int


def named(name: str) -> Named | None:
    """What the file name `name` says, None if it is not a reference's."""
    found = _NAME.fullmatch(name)
    if found is None or found[3].lower() not in IMAGE_ENDINGS:
        return None
    return Named(found[1], int(found[2]))


def in_order(found: Iterable[tuple[int, Place]]) -> tuple[tuple[Place, ...], str]:
    """The references of a sample by number, and why they cannot be used."""
    ordered = sorted(found)
    numbers = [number for number, _ in ordered]
    fault = ""
    if numbers != list(range(1, len(numbers) + 1)):
        fault = f"references numbered {', '.join(map(str, numbers))}: number them from 1, each once"
    elif len(numbers) > MOST:
        fault = f"{len(numbers)} references, at most {MOST} are used"
    return tuple(place for _, place in ordered), fault


def apart(images: Iterable[str]) -> dict[str, list[str]]:
    """The images of one folder that are samples, by name, each with the names of its references.

    A name like a reference's without the picture that it would belong to is a sample.
    """
    names = sorted(images)
    stems = {name.rpartition(".")[0] for name in names if not named(name)}
    beside: dict[str, list[str]] = {}
    for name in names:
        found = named(name)
        if found and found.stem in stems:
            beside.setdefault(found.stem, []).append(name)
    mine = {name for group in beside.values() for name in group}
    return {name: beside.get(name.rpartition(".")[0], []) for name in names if name not in mine}
