"""The house rules that no reviewer should have to repeat."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "launch": {"producer", "consumer", "model", "parallel"},
    "producer": {"model"},
    "consumer": {"model", "parallel", "producer"},  # of producer its api alone
    "model": set[str](),
    "parallel": set[str](),
}
# Of other people's packages, those a folder must do without; nested ones are dotted.
BANNED = {
    "launch": set[str](),
    "producer": {"megatron", "transformer_engine", "torch.distributed"},
    "consumer": {"megatron", "transformer_engine", "ray"},
    "model": {"megatron", "transformer_engine", "ray", "torch.distributed"},
    "parallel": {"ray"},
}
API_ALONE = {"numpy", "pyarrow", "xxhash"}
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}
FILE_LINES, FUNCTION_LINES = 400, 60
PACKAGES = sorted(MAY_IMPORT)
OURS = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# A script that hands over to the library's module of its name: tests/unit/launch/test_inspect.py.
ASIDE = {"inspect"}
LAUNCH_STEMS = {path.stem for path in (ROOT / "launch").glob("*.py")} - {"__init__"} - ASIDE


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


every_file = pytest.mark.parametrize("path", OURS, ids=name_of)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Dotted names a file imports, modules' members too: `from a.b import c` gives a.b.c."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the whole name of the module"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def used(path: Path) -> set[str]:
    """Dotted names that a file's expressions go through, such as torch.distributed.barrier."""
    return {ast.unparse(node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}


def within(name: str, roots: set[str]) -> bool:
    return f"{name}.".startswith(tuple(f"{root}." for root in roots))


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def strangers(path: Path) -> set[str]:
    """What a file imports or uses of ours that its folder may not."""
    package = path.relative_to(ROOT).parts[0]
    ours = {name for name in imported(path) if name.split(".")[0] in MAY_IMPORT}
    allowed = {name for name in ours if name.split(".")[0] in MAY_IMPORT[package] | {package}}
    if package == "consumer":
        allowed = {name for name in allowed if not within(name, {"producer"}) or within(name, {"producer.api"})}
    if within(name_of(path).replace("/", "."), {"producer.api"}):
        allowed = {name for name in allowed if within(name, {"producer.api"})}
    return (ours - allowed) | {name for name in imported(path) | used(path) if within(name, BANNED[package])}


@every_file
def test_imports_go_one_way(path: Path) -> None:
    assert not strangers(path)


@pytest.mark.parametrize("path", sorted((ROOT / "producer" / "api").glob("*.py")), ids=name_of)
def test_what_a_consumer_shares_with_a_producer_needs_numpy_pyarrow_and_xxhash_alone(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path)}
    assert tops <= API_ALONE | {"producer"} | sys.stdlib_module_names


@every_file
def test_names_come_whole_from_their_modules(path: Path) -> None:
    assert not {name for name in imported(path) if name in MAY_IMPORT}
    assert not {name for name in imported(path) if name.endswith(".*")}
    assert not {name for name in imported(path) if name.split(".")[0] in LAUNCH_STEMS}, "write launch.NAME"


@pytest.mark.parametrize("path", [p for p in OURS if p.name == "__init__.py"], ids=name_of)
def test_a_package_says_what_it_is_for_and_nothing_else(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree) and len(tree.body) == 1


@every_file
def test_files_and_functions_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES
    ]
    assert not long


@pytest.mark.parametrize("path", OURS + TESTS, ids=name_of)
def test_files_are_named_for_what_they_hold(path: Path) -> None:
    assert not VAGUE & {part.removesuffix(".py") for part in path.relative_to(ROOT).parts}


@every_file
def test_modules_say_what_they_are_for(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), "the module has no docstring"


@every_file
def test_nobody_prints_below_launch(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] != "launch":
        assert not [node.lineno for name, node in calls(path) if name == "print"]


@pytest.mark.parametrize("path", OURS + TESTS, ids=name_of)
def test_nothing_is_loaded_that_can_run_code(path: Path) -> None:
    assert not {name for name in imported(path) if within(name, {"pickle", "cPickle", "dill", "marshal", "shelve"})}
    running = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"}
    # A module in evaluation mode is written model.eval(); the builtin stands alone.
    assert not [node.lineno for name, node in calls(path) if name in running]
    for name, node in calls(path):
        for word in node.keywords:
            on = isinstance(word.value, ast.Constant) and word.value.value is True
            assert not (on and word.arg in {"shell", "allow_pickle", "trust_remote_code"}), f"{name}, {node.lineno}"


def test_scripts_shadow_no_module() -> None:
    """Python puts a script's folder first on its path: launch/profile.py would replace the library's profile."""
    assert not LAUNCH_STEMS & sys.stdlib_module_names
    assert not [stem for stem in LAUNCH_STEMS if installed(stem)]
    assert not [package for package in PACKAGES if package in sys.stdlib_module_names]


def installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and not str(spec.origin).startswith(str(ROOT / "launch"))


def test_commands_that_train_nothing_load_no_torch() -> None:
    """Which takes seconds, and half a gigabyte in each process."""
    names = ("annotate", "curate", "inspect", "recipe", "synthesize")
    loaded = f"import sys, {', '.join(f'launch.{name}' for name in names)}; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert said.stdout == "False\n", said.stderr


def test_every_package_is_installed_with_the_others() -> None:
    folders = {path.parent.relative_to(ROOT) for path in OURS}
    assert not [folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()]
    found = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert found == set(PACKAGES)


def test_this_workplace_is_not_written_down() -> None:
    assert not [name_of(path) for path in OURS + TESTS if "/" + "work/" in path.read_text(encoding="utf-8")]
