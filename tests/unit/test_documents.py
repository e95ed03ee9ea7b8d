"""Every command in README and docs is of the form that the programs take: files, modules, targets, flags, settings."""

import argparse
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from torch.distributed.run import get_args_parser

from launch.config import ConfigError, load, show
from launch.settings import Settings
from tests.e2e.documents import ROOT, STAND_INS, blocks, expanded, inline, links, pages

COMMANDS = [
    pytest.param(words, id=f"{block}: {' '.join(words)[:60]}")
    for page in pages()
    for block in blocks(page)
    for words in expanded(block)
]
NAMED = re.compile(
    r"(?:launch|tests|docs|consumer|producer|parallel|model)/[\w./-]+\.(?:py|toml|yaml|md|sbatch|sh|json)"
)
FILES = (".py", ".jsonl", ".json", ".pem", ".key")  # endings that no setting has
CONFIGS = sorted((ROOT / "launch" / "configs").glob("*.toml"))


class _ParsedError(Exception):
    """What a program made of its command line."""


def _stopped(parse: Callable[..., Any]) -> Callable[..., None]:
    def parsed(self: argparse.ArgumentParser) -> None:
        raise _ParsedError(parse(self))

    return parsed


def _loading(kind: type, config: Path, overrides: list[str]) -> None:
    raise _ParsedError(argparse.Namespace(config=config, overrides=overrides))


@pytest.fixture
def parsing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Programs of ours end when they have read their command line."""
    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, _stopped(getattr(argparse.ArgumentParser, name)))
    return monkeypatch


def stand_in(word: str) -> str:
    for placeholder, given in STAND_INS.items():
        word = re.sub(rf"\b{placeholder}\b", given, word)
    return word


def settings_of(config: str, overrides: list[str]) -> Settings:
    return load(Settings, ROOT / config, ["run.dir=runs/x", "source.path=runs/x", *overrides])


def check_script(words: list[str], parsing: pytest.MonkeyPatch) -> None:
    """A program of ours with its arguments: it is there, takes them, and its settings are settings."""
    script = ROOT / words[0]
    assert script.is_file(), f"{words[0]} is not there"
    if "argparse" not in script.read_text() and "command_line" not in script.read_text():
        return
    parsing.setattr(sys, "argv", [str(script), *words[1:]])
    program = importlib.import_module(words[0].removesuffix(".py").replace("/", "."))
    if hasattr(program, "load"):  # it parses by itself
        parsing.setattr(program, "load", _loading)
    with pytest.raises(_ParsedError) as parsed:
        program.main()
    said = parsed.value.args[0]
    if getattr(said, "config", None):
        assert (ROOT / said.config).is_file(), f"{said.config} is not there"
        if hasattr(program, "SynthesizeSettings"):  # the one program with settings of its own
            load(program.SynthesizeSettings, ROOT / said.config, said.overrides)
        else:
            settings_of(said.config, said.overrides)


def check_make(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(words) <= targets, f"no such target: {set(words) - targets}"


def check_torchrun(words: list[str], parsing: pytest.MonkeyPatch) -> None:
    parser = get_args_parser()
    with pytest.raises(_ParsedError) as parsed:
        parsing.setattr(sys, "argv", ["torchrun", *words])
        parser.parse_args()
    said = parsed.value.args[0]
    check_script([said.training_script, *said.training_script_args], parsing)


@pytest.mark.parametrize("words", COMMANDS)
def test_a_documented_command_is_one_that_the_programs_take(words: list[str], parsing: pytest.MonkeyPatch) -> None:
    program, *rest = map(stand_in, words)
    if program == "make":
        check_make(rest)
    elif program == "python":
        check_script(rest, parsing)
    elif program == "torchrun":
        check_torchrun(rest, parsing)
    else:
        for word in rest:
            if NAMED.fullmatch(word):
                assert (ROOT / word).exists(), f"{word} is not there"
            elif word in ("constraints.txt", "requirements.txt"):
                assert (ROOT / word).exists()


def test_a_command_that_would_not_work_is_found(parsing: pytest.MonkeyPatch) -> None:
    good = ["launch/sample.py", "launch/configs/smoke.toml", "--out", "x.png"]
    check_script(good, parsing)
    with pytest.raises(SystemExit):
        check_script([*good, "--size"], parsing)
    with pytest.raises(ConfigError):
        check_script([*good, "sample.size=3"], parsing)
    with pytest.raises(AssertionError):
        check_script(["launch/absent.py"], parsing)
    with pytest.raises(AssertionError):
        check_make(["absent"])


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    missing = [link for link in links(page) if not (page.parent / link).exists()]
    for said in inline(page):
        missing += [name for name in NAMED.findall(said) if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_setting_that_a_page_names_is_one(page: Path) -> None:
    wrong = []
    for said in inline(page):
        found = re.match(r"([a-z_]+)((?:\.[a-z0-9_]+)+)(=\S.*)?$", said)
        if not found or found[1] not in Settings.model_fields or Path(said).suffix in FILES:
            continue
        kind: Any = Settings.model_fields[found[1]].annotation
        for name in found[2][1:].split("."):
            # A section that may be left out is `Kind | None`.
            kinds = [kind, *get_args(kind)]
            field = next((one.model_fields[name] for one in kinds if name in getattr(one, "model_fields", {})), None)
            kind = field.annotation if field else None
            if field is None:
                wrong.append(said)
                break
    assert not wrong, f"{page.name} names settings that are not there: {wrong}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shown_configuration_read_again_is_the_same(path: Path) -> None:
    settings = settings_of(str(path.relative_to(ROOT)), [])
    again = Settings.model_validate_json(show(settings), strict=True)
    assert again == settings and show(again) == show(settings)
