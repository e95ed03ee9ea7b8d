"""Settings are what the file and the overrides say, or one message says what is wrong and where."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field, model_validator

from launch.config import ConfigError, load, override, read, show


class Run(BaseModel, frozen=True, strict=True, extra="forbid"):
    dir: Path
    seed: int = 0


class Optim(BaseModel, frozen=True, strict=True, extra="forbid"):
    lr: float = Field(default=1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    kind: Literal["adam", "sgd"] = "adam"
    warmup: int = 0
    steps: int = 10

    @model_validator(mode="after")
    def _fits(self) -> "Optim":
        if self.warmup > self.steps:
            raise ValueError(f"optim.warmup: {self.warmup} exceeds steps {self.steps}; lower it")
        return self


class Root(BaseModel, frozen=True, strict=True, extra="forbid"):
    run: Run
    optim: Optim = Field(default_factory=Optim)
    note: str = ""


def write(folder: Path, text: str, name: str = "a.toml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def fails(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(Root, write(folder, text), list(overrides))
    return str(caught.value)


RUN = '[run]\ndir = "out"\n'


def test_a_file_gives_settings_and_the_rest_are_defaults(tmp_path: Path) -> None:
    found = load(Root, write(tmp_path, RUN + "seed = 3\n[optim]\nbetas = [0.8, 0.9]\n"), [])
    assert found == Root(run=Run(dir=Path("out"), seed=3), optim=Optim(betas=(0.8, 0.9)))


def test_an_unknown_setting_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    assert fails(tmp_path, RUN + "[optim]\nwarmpu = 3\n") == "optim.warmpu: no such setting; did you mean warmup?"
    assert fails(tmp_path, RUN + "[optin]\n") == "optin: no such setting; did you mean optim?"
    assert fails(tmp_path, RUN + "[optim]\nzzzzzz = 3\n") == "optim.zzzzzz: no such setting"


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    assert fails(tmp_path, "[run]\nseed = 1\n") == "run.dir: required, not set"
    assert fails(tmp_path, "") == "run: required, not set"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('lr = "fast"', "optim.lr: input should be a valid number, got 'fast'"),
        ("lr = -1.0", "optim.lr: input should be greater than 0, got -1.0"),
        ("warmup = 1.5", "optim.warmup: input should be a valid integer"),
        ("warmup = true", "optim.warmup: input should be a valid integer, got True"),
        ('warmup = "3"', "optim.warmup: input should be a valid integer, got '3'"),
        ("warmup = 1979-05-27", "optim.warmup: input should be a valid integer, got '1979-05-27'"),
        ('kind = "adamw"', "optim.kind: input should be 'adam' or 'sgd', got 'adamw'"),
        ("betas = [0.9]", "optim.betas.1: required, not set"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_what_it_is(tmp_path: Path, line: str, said: str) -> None:
    assert fails(tmp_path, f"{RUN}[optim]\n{line}\n").startswith(said)


def test_every_wrong_setting_is_named_at_once(tmp_path: Path) -> None:
    said = fails(tmp_path, '[run]\nseed = "x"\n[optim]\nlr = 0.0\nfoo = 1\n').splitlines()
    assert sorted(line.split(":")[0] for line in said) == ["optim.foo", "optim.lr", "run.dir", "run.seed"]


def test_a_check_across_fields_names_its_setting_once(tmp_path: Path) -> None:
    said = fails(tmp_path, RUN + "[optim]\nwarmup = 30\n")
    assert said == "optim.warmup: 30 exceeds steps 10; lower it"


def test_a_file_is_laid_over_the_one_it_extends_table_by_table(tmp_path: Path) -> None:
    write(tmp_path, RUN + "seed = 3\n[optim]\nlr = 1e-3\nbetas = [0.1, 0.2]\n", "base.toml")
    write(tmp_path, 'extends = "../base.toml"\n[optim]\nlr = 5e-3\n', "sub/middle.toml")
    top = write(tmp_path, 'extends = "sub/middle.toml"\n[run]\nseed = 4\n', "top.toml")
    found = load(Root, top, [])
    assert (found.run.seed, found.optim.lr, found.optim.betas) == (4, 5e-3, (0.1, 0.2))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: No such file"):
        read(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        read(tmp_path)
    with pytest.raises(ConfigError, match=r"base\.toml: No such file"):
        read(write(tmp_path, 'extends = "base.toml"'))
    with pytest.raises(ConfigError, match=r"a\.toml: not TOML"):
        read(write(tmp_path, "[run\n"))
    with pytest.raises(ConfigError, match="extends: 3 is no file"):
        read(write(tmp_path, "extends = 3"))
    (tmp_path / "latin.toml").write_bytes(b'note = "caf\xe9"')
    with pytest.raises(ConfigError, match=r"latin\.toml: not TOML: .*utf-8"):
        read(tmp_path / "latin.toml")


def test_files_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "b.toml"')
    write(tmp_path, 'extends = "a.toml"', "b.toml")
    with pytest.raises(ConfigError, match="extends itself"):
        read(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("optim.lr=3e-4", 3e-4),
        ("optim.lr = 3e-4", 3e-4),
        ("optim.on=true", True),
        ("optim.betas=[1, 2]", [1, 2]),
        ("optim.kind=sgd", "sgd"),
        ('optim.kind="3"', "3"),
        ("optim.path=/a/b=c", "/a/b=c"),
        ("optim.text=two words", "two words"),
        ("optim.text=", ""),
        ("new.deep.key=1", 1),
    ],
)
def test_an_override_is_toml_or_else_a_word(item: str, value: object) -> None:
    tree: dict[str, object] = {"optim": {"lr": 1.0}}
    override(tree, item)
    found: object = tree
    for name in item.partition("=")[0].strip().split("."):
        assert isinstance(found, dict)
        found = found[name]
    assert found == value and type(found) is type(value)


def test_an_override_wins_over_the_file(tmp_path: Path) -> None:
    found = load(Root, write(tmp_path, RUN + "[optim]\nlr = 1.0\n"), ["optim.lr=2.0", "optim.lr=3.0", "run.dir=x"])
    assert (found.optim.lr, found.run.dir) == (3.0, Path("x"))


@pytest.mark.parametrize("item", ["optim.lr", "=3", "", "  =3"])
def test_an_override_that_sets_nothing_is_refused(item: str) -> None:
    with pytest.raises(ConfigError, match=r"write it as key\.path=value"):
        override({}, item)


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    assert "lr is a value, not a table" in fails(tmp_path, RUN + "[optim]\nlr = 1.0\n", "optim.lr.x=1")


def test_an_override_of_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    assert fails(tmp_path, RUN, "optim.lrr=1") == "optim.lrr: no such setting; did you mean lr?"


def test_a_setting_stands_for_another(tmp_path: Path) -> None:
    found = load(Root, write(tmp_path, 'note = "${run.dir}/x, seed ${run.seed}"\n' + RUN + "seed = 3\n"), [])
    assert found.note == "out/x, seed 3"


def test_what_is_filled_in_is_filled_itself_and_after_overrides(tmp_path: Path) -> None:
    text = 'note = "${run.dir}/x"\n[run]\ndir = "${name}/run"\n'
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=r"\{name\}: no such setting"):
        load(Root, path, [])

    class Named(Root, frozen=True, strict=True, extra="forbid"):
        name: str

    assert load(Named, path, ["name=a"]).note == "a/run/x"


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ("${run.dri}", "${run.dri}: no such setting in the file"),
        ("${run}", "${run}: a table or list cannot stand inside a string"),
        ("${}", "${}: no such setting"),
        ("${run.dir.x}", "${run.dir.x}: no such setting"),
        ("a${note}", "${note}: stands for itself"),
    ],
)
def test_a_setting_that_cannot_be_filled_in_is_named(tmp_path: Path, note: str, said: str) -> None:
    assert fails(tmp_path, f'note = "{note}"\n{RUN}').startswith(said)


def test_settings_cannot_be_changed_after_loading(tmp_path: Path) -> None:
    found = load(Root, write(tmp_path, RUN), [])
    with pytest.raises(ValueError, match="frozen"):
        found.run.seed = 3  # type: ignore[misc]


def test_what_is_shown_reads_back_to_the_same_settings(tmp_path: Path) -> None:
    found = load(Root, write(tmp_path, RUN), ["optim.lr=0.25"])
    assert Root.model_validate_json(show(found), strict=True) == found
