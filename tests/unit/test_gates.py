"""What no line of ours may do: run what it reads, or wait for the other side for ever."""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from producer.api.channel import Channel

ROOT = Path(__file__).parents[2]
PACKAGES = ("consumer", "launch", "model", "parallel", "producer")
OURS = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# Modules that run what they load, whoever imports them.
RUNNERS = {"cPickle", "cloudpickle", "code", "dill", "hickle", "jsonpickle", "marshal", "pickle", "shelve", "_pickle"}
RUNNERS |= {"ray.cloudpickle", "torch.distributed.rpc", "torch.distributed.checkpoint", "xmlrpc"}
# Calls that do, by the end of their name.
RUNNING = {"eval", "exec", "compile", "__import__", "execfile"}
RUNNING_OF = {
    "torch.load",
    "torch.hub.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "numpy.load",
    "np.load",
    "pandas.read_pickle",
    "joblib.load",
    "pa.deserialize",
    "pa.PyExtensionType",
    "importlib.machinery.ExtensionFileLoader",
    "runpy.run_path",
    "runpy.run_module",
    "tarfile.open.extractall",
    "shutil.unpack_archive",
}
# Words of a call that let it, with the value that does.
WORDS = {"shell": True, "allow_pickle": True, "trust_remote_code": True, "weights_only": False, "trust_repo": True}
RPCS = {"do_get", "do_put", "do_action", "do_exchange", "list_flights", "list_actions", "get_flight_info", "get_schema"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def running(tree: ast.AST) -> list[str]:
    """What in a module runs, or may run, what it reads."""
    found = [name for name in imported(tree) if any(f"{name}.".startswith(f"{runner}.") for runner in RUNNERS)]
    for name, node in calls(tree):
        if name in RUNNING or name in RUNNING_OF:
            found.append(f"{name}, line {node.lineno}")
        for word in node.keywords:
            if word.arg in WORDS and not (isinstance(word.value, ast.Constant) and word.value.value != WORDS[word.arg]):
                found.append(f"{name}({ast.unparse(word)}), line {node.lineno}")
    return found


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_nothing_of_ours_runs_what_it_reads(path: Path) -> None:
    assert running(tree_of(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from ray import cloudpickle",
        "from torch.distributed import rpc",
        "import torch.distributed.checkpoint as dcp",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "f(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "np.load(path)",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(line, shell=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
    ],
)
def test_the_gate_sees_what_it_is_for(line: str) -> None:
    assert running(ast.parse(line))


def test_every_call_to_another_process_has_a_deadline() -> None:
    """Flight has none of its own: so there is one place that calls, and its methods take one."""
    makers = [name_of(path) for path in OURS for name, _ in calls(tree_of(path)) if name.endswith("FlightClient")]
    assert set(makers) == {"producer/api/channel.py"}
    for path in OURS:
        for name, node in calls(tree_of(path)):
            # The servers' own methods call nobody.
            if name.rpartition(".")[2] in RPCS:
                assert name_of(path) == "producer/api/channel.py"
                assert "self._call(timeout_s)" in [ast.unparse(argument) for argument in node.args], name
    for method in (Channel.ask, Channel.ask_raw, Channel.open):
        assert inspect.signature(method).parameters["timeout_s"].default is inspect.Parameter.empty


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_no_connection_is_waited_for_without_an_end(path: Path) -> None:
    """`socket.create_connection` and `urlopen` take their time as an argument; `requests` is not used."""
    tree = tree_of(path)
    assert not {name for name in imported(tree) if name.split(".")[0] == "requests"}
    for name, node in calls(tree):
        if name.endswith(("create_connection", "urlopen", "HTTPConnection", "HTTPSConnection")):
            said = len(node.args) > 1 and name.endswith("create_connection")
            assert said or [word for word in node.keywords if word.arg == "timeout"], node.lineno
