"""What tests of several packages share."""

import os
import signal
import sys
from pathlib import Path

import pytest

# A shell's background job ignores Ctrl-C, and so would the commands that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End without the interpreter's teardown, in which threads of gRPC, Ray or torch have crashed after all had passed.

    Everything is reported by now, and fixtures have ended what they started. A process of pytest-xdist ends by itself,
    since the one that started it would take this for a crash.
    """
    if hasattr(config, "workerinput"):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(config.stash.get(_STATUS, pytest.ExitCode.INTERNAL_ERROR))


_STATUS = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of tiny encoders, made once."""
    # Not above: it takes seconds to import, and most tests do without.
    from launch.make_encoders import make

    folder = tmp_path_factory.mktemp("encoders") / "tiny"
    make(folder)
    return folder
