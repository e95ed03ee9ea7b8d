"""TOML files and `key.path=value` overrides to one frozen, checked tree of settings.

`extends = "base.toml"` lays a file over another; `${section.key}` inside a string stands for that setting.
"""

import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

T = TypeVar("T", bound=BaseModel)


class ConfigError(ValueError):
    """A setting is unknown, missing or wrong; the message starts with its path."""


def load(kind: type[T], path: Path, overrides: list[str]) -> T:
    """The settings of type `kind` in the file at `path`, with `overrides` laid over them."""
    tree = read(path)
    for item in overrides:
        override(tree, item)
    return build(kind, fill(tree, tree))


def read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The table at `path`, laid over the file that its `extends` names; `above` are the files that led here."""
    if path.resolve() in above:
        raise ConfigError(f"{path}: extends itself, through {' and '.join(map(str, above))}")
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends: {base!r} is no file's name")
    return merge(read(path.parent / base, (*above, path.resolve())), table)


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`top` laid over `base`, table by table."""
    nested = {key for key in base.keys() & top.keys() if isinstance(base[key], dict) and isinstance(top[key], dict)}
    return base | top | {key: merge(base[key], top[key]) for key in nested}


def override(tree: dict[str, Any], item: str) -> None:
    """Set one `key.path=value` in `tree`; the value is TOML, a bare word is a string."""
    path, equals, text = (part.strip() for part in item.partition("="))
    if not equals or not path:
        raise ConfigError(f"override {item!r}: write it as key.path=value")
    *parents, last = path.split(".")
    for name in parents:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {item!r}: {name} is a value, not a table")
    try:
        tree[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        tree[last] = text


def fill(value: Any, tree: dict[str, Any], above: tuple[str, ...] = ()) -> Any:
    """`value` with every `${section.key}` in its strings replaced by that setting of `tree`, filled in turn.

    `above` are the settings that led here.
    """
    if isinstance(value, dict):
        return {key: fill(item, tree, above) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, tree, above) for item in value]
    if isinstance(value, str):
        return re.sub(r"\$\{([^{}]*)\}", lambda match: _lookup(match[1], tree, above), value)
    return value


def _lookup(path: str, tree: dict[str, Any], above: tuple[str, ...]) -> str:
    found: Any = tree
    for name in path.split("."):
        if not isinstance(found, dict) or name not in found:
            raise ConfigError(f"${{{path}}}: no such setting in the file")
        found = found[name]
    if isinstance(found, dict | list):
        raise ConfigError(f"${{{path}}}: a table or list cannot stand inside a string")
    if path in above:
        raise ConfigError(f"${{{path}}}: stands for itself, through {' and '.join(above)}")
    return str(fill(found, tree, (*above, path)))


def build(kind: type[T], tree: dict[str, Any]) -> T:
    """`tree` as a `kind`; every wrong setting is named in one ConfigError, a line each."""
    senseless = dict(_senseless(kind, tree))
    lines = [f"{path}: {message}" for path, message in senseless.items()]
    try:
        # Through JSON: its strict mode turns lists into tuples and strings into paths, and coerces nothing else.
        built = kind.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        lines += [_said(kind, item) for item in error.errors() if ".".join(map(str, item["loc"])) not in senseless]
    if lines:
        raise ConfigError("\n".join(lines)) from None
    return built


def _senseless(kind: Any, value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Values that types and bounds let through: infinity, NaN, and an empty path, which would be this folder."""
    if isinstance(value, dict):
        fields = _fields(kind)
        for name, inner in value.items():
            below = fields[name].annotation if name in fields else None
            yield from _senseless(below, inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _senseless(None, inner, f"{path}.{number}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, f"must be a finite number, got {value}"
    elif value == "" and (kind is Path or Path in get_args(kind)):
        yield path, "empty, which would be the current folder; give a path, or leave it out for its default"


def _said(kind: type[BaseModel], item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), _names(kind, item["loc"][:-1]), 1)
        return f"{path}: no such setting" + (f"; did you mean {near[0]}?" if near else "")
    if item["type"] == "missing":
        return f"{path}: required, not set"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        # Checks across a section's fields name the field themselves.
        return f"{path}: {message}" if path and not message.startswith(f"{path}.") else message
    return f"{path}: {message[0].lower()}{message[1:]}, got {item['input']!r}"


def _names(kind: Any, parents: tuple[Any, ...]) -> list[str]:
    for name in parents:
        field = _fields(kind).get(name)
        kind = field.annotation if field else None
    return list(_fields(kind))


def _fields(kind: Any) -> dict[str, Any]:
    """The settings of a section, also of one that may be left out."""
    kinds = (kind, *get_args(kind))
    return next((one.model_fields for one in kinds if hasattr(one, "model_fields")), {})


def show(config: BaseModel) -> str:
    """The resolved tree as indented JSON."""
    return config.model_dump_json(indent=2)
