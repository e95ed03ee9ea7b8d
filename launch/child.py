"""Commands run as children: their lines shown as they come, their memory watched, and none left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

# From the signal that asks a child to end to the one that ends it.
GRACE_S = 7.0


class ChildError(ValueError):
    """A command ended with an error; its own last lines say why."""


class Child:
    """One command in a process group of its own. Its output is passed on line by line, and kept in `log`."""

    def __init__(self, name: str, command: Sequence[str | Path], log: Path) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env={"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self.lines: list[str] = []
        self.ending = False  # what it says of being interrupted goes to the log alone
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.log.open("w") as log:
            for line in self.process.stdout:
                self.lines.append(line.rstrip())
                log.write(line)
                log.flush()
                if not self.ending:
                    print(f"  {line.rstrip()}", flush=True)

    def until(self, fine: Callable[[], bool], timeout_s: float) -> None:
        """Wait until `fine`; ChildError when the command ends before, or after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not fine():
            if self.process.poll() is not None:
                raise ChildError(f"{self.name}: ended with code {self.process.returncode}; see {self.log}")
            if time.monotonic() > deadline:
                raise ChildError(f"{self.name}: not ready after {timeout_s:.0f} s; see {self.log}")
            time.sleep(0.05)

    def finish(self, timeout_s: float) -> None:
        """Wait for the end; ChildError unless its code is 0."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ChildError(f"{self.name}: still running after {timeout_s:.0f} s; see {self.log}") from None
        self.reader.join(2)
        if code:
            raise ChildError(f"{self.name}: ended with code {code}; see {self.log}")

    def kill(self) -> None:
        """SIGKILL to the command and all that it started, at once."""
        kill(self.family())
        self.process.wait(5)

    def signal(self, number: int) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, number)

    def family(self) -> list[psutil.Process]:
        """The command and its descendants that are alive."""
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def stop(children: Sequence[Child]) -> None:
    """Ask all of `children` to end, then force it: the commands, and all that they started."""
    family = [process for child in children for process in child.family()]
    for child in children:
        child.ending = True
        child.signal(signal.SIGINT)
    psutil.wait_procs(family, GRACE_S)
    kill(family)
    for child in children:
        child.process.wait(5)


def kill(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL to those still there."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(list(processes), 3)


class MemoryWatch:
    """The most memory that this process and its descendants held at once, shared pages counted once each as none."""

    def __init__(self, every_s: float = 1.0) -> None:
        self.peak_bytes, self.every_s = 0, every_s
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            root = psutil.Process()
            self.peak_bytes = max(self.peak_bytes, sum(map(_private, [root, *root.children(recursive=True)])))
            time.sleep(self.every_s)


def _private(process: psutil.Process) -> int:
    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0
    return int(memory.rss - memory.shared)


def python(script: str, *arguments: str | Path) -> list[str | Path]:
    """The command line of one of our scripts in this interpreter."""
    return [sys.executable, script, *arguments]


def torchrun(ranks: int, script: str, *arguments: str | Path) -> list[str | Path]:
    """The command line of a script on `ranks` ranks of this machine, meeting on a free loopback port."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return [*launcher, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", script, *arguments]
