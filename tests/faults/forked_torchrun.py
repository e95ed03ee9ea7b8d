"""torchrun in a moment: the real launcher and the real script in processes forked from one that has all imported.

A start otherwise takes seconds a rank, nearly all of them imports. The one thing replaced is the launcher's way to
start a worker, fork for exec; `make soak` runs the same tests under torchrun as it is. Run as a program, this file is
the process that forks.
"""

import atexit
import json
import logging
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
IMPORT_S = 120.0
ANSWER_S = 30.0


class Launchers:
    """The process that forks launchers; close it when all of them have ended."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=pipe, stdout=pipe, env=environment, text=True, cwd=ROOT
        )
        self._lock = threading.Lock()
        self._patience = IMPORT_S

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Start `torchrun ARGUMENTS` with its output in `log`; the launcher's process id."""
        return self._ask({"arguments": list(arguments), "environment": dict(environment), "log": str(log)})

    def poll(self, pid: int) -> int | None:
        """The launcher's exit code, negative for a signal; None while it runs."""
        return self._ask({"poll": pid})

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()

    def _ask(self, said: Mapping[str, Any]) -> Any:
        with self._lock:
            assert self._process.stdin and self._process.stdout
            self._process.stdin.write(json.dumps(said) + "\n")
            self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], self._patience)
            line = self._process.stdout.readline() if ready else ""
            assert line, "the process that forks launchers is gone or stuck"
            self._patience = ANSWER_S
            return json.loads(line)


class _Worker:
    """What the launcher asks of a subprocess.Popen, for a fork."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.returncode: int | None = None
        self.pid = _forked(run)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _code(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (timeout or float("inf"))
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("worker", timeout or 0)
            time.sleep(0.01)
        return code


def _code(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def _forked(run: Callable[[], None]) -> int:
    """A child in a session of its own that runs `run` and ends as a program would."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _launch(arguments: list[str], environment: dict[str, str], log: str) -> None:
    """Be torchrun."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.environ.update(environment)

    def start(handler: SubprocessHandler, command: tuple[str, ...], environment: dict[str, str]) -> _Worker:
        # The interpreter and its -u come first.
        return _Worker(lambda: _work(list(command[2:]), environment))

    SubprocessHandler._popen = start  # type: ignore[method-assign, assignment]
    run.main(arguments)


def _work(command: list[str], environment: dict[str, str]) -> None:
    """Be a rank: `command` is a script and its arguments."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    atexit._clear()
    logging.getLogger().handlers.clear()
    # What the launcher has open is not this process's: its end must be seen where it is connected. The numbers stay
    # taken, since objects of the launcher's would close them.
    null = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and Path(f"/proc/self/fd/{name}").exists():
            os.dup2(null, int(name))
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()


def _serve() -> None:
    """Fork a launcher a request and say its id, or how one ended."""
    import launch.pretrain  # noqa: F401

    for line in sys.stdin:
        said = json.loads(line)
        answer = _code(said["poll"]) if "poll" in said else _forked(lambda said=said: _launch(**said))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
