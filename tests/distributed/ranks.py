"""Runs a function of a test file on several gloo ranks, each a process of its own.

Ranks are forked from one process that has torch and megatron imported, so starting them takes a moment and not ten
seconds. Warnings are errors there too. Run as a program, this file is that process.
"""

import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class RanksError(AssertionError):
    """Ranks failed, died or outlasted their deadline. `codes` are their exit codes, negative for a signal."""

    def __init__(self, message: str, codes: list[int | None]) -> None:
        super().__init__(message)
        self.codes = codes


class Ranks:
    """The process that forks ranks; close it."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._parent = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self._log = tempfile.TemporaryDirectory()

    def run(self, world: int, function: Callable[..., Any], *, deadline_s: float = 60.0, **arguments: Any) -> list[Any]:
        """What `function(**arguments)` returns on each of `world` ranks; arguments and results travel as JSON.

        The function is a plain one of a test file. Raises RanksError with the ranks' last words; none is left running.
        """
        folder = Path(tempfile.mkdtemp(dir=self._log.name))
        said = {
            "file": function.__code__.co_filename,
            "function": function.__name__,
            "world": world,
            "port": _free_port(),
            "folder": str(folder),
            "deadline_s": deadline_s,
            "arguments": arguments,
        }
        assert self._parent.stdin and self._parent.stdout
        self._parent.stdin.write(json.dumps(said, default=str) + "\n")
        self._parent.stdin.flush()
        # The first call also waits for the imports.
        ready, _, _ = select.select([self._parent.stdout], [], [], deadline_s + 120)
        line = self._parent.stdout.readline() if ready else ""
        if not line:
            raise RanksError("the process that forks ranks is gone or stuck", [])
        codes = json.loads(line)
        if any(codes):
            logs = "\n".join(f"--- rank {r}: {codes[r]}\n{_tail(folder / f'{r}.log')}" for r in range(world))
            raise RanksError(f"{function.__name__} on {world} ranks\n{logs}", codes)
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]

    def close(self) -> None:
        """End the process; it has no ranks left between calls."""
        self._parent.kill()
        self._parent.wait()
        for pipe in (self._parent.stdin, self._parent.stdout):
            assert pipe
            pipe.close()
        self._log.cleanup()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-3000:] if path.exists() else "(no output)"


def _serve() -> None:
    """Fork the ranks of each request; answer with their exit codes."""
    import parallel.engine  # noqa: F401

    for line in sys.stdin:
        said = json.loads(line)
        pids = [_fork(said, rank) for rank in range(said["world"])]
        print(json.dumps(_wait(pids, said["deadline_s"])), flush=True)


def _fork(said: dict[str, Any], rank: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(f"{said['folder']}/{rank}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        world = str(said["world"])
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": world, "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": world}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(said["port"])}
        warnings.simplefilter("error")
        result = _load(said["file"], said["function"])(**said["arguments"])
        Path(said["folder"], f"{rank}.json").write_text(json.dumps(result))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _load(file: str, function: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location("rank_functions", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)


def _wait(pids: list[int], deadline_s: float) -> list[int]:
    """Exit codes; once one failed the others have a second to end by themselves."""
    codes: dict[int, int] = {}
    end = time.monotonic() + deadline_s
    while len(codes) < len(pids):
        done, status = os.waitpid(-1, os.WNOHANG)
        if done:
            codes[done] = os.waitstatus_to_exitcode(status)
            if codes[done]:
                end = min(end, time.monotonic() + 1)
        elif time.monotonic() > end:
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGKILL)
        else:
            time.sleep(0.005)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    _serve()
