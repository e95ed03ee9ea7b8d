"""What the tests of faults share: a unit server, and jobs of which nothing is left behind."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.forked_torchrun import Launchers
from tests.faults.job import Job, Producers, write_encoder_facts
from tests.faults.planted import Fault

# (folder, ranks, *settings, faults=, restarts=, forked=): a job with the settings that all need.
Start = Callable[..., Job]

LEAVE_S = 5.0  # for what a job's end has left to do once the launcher is gone


@pytest.fixture(scope="session")
def launchers() -> Iterator[Launchers]:
    """Starts torchrun in a moment."""
    forked = Launchers()
    yield forked
    forked.close()


@pytest.fixture(scope="session")
def producers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Producers]:
    """Random units."""
    served = Producers(tmp_path_factory.mktemp("producers"))
    yield served
    served.stop()


@pytest.fixture(scope="session")
def facts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The setting that names the encoders."""
    root = tmp_path_factory.mktemp("facts") / "encoders"
    write_encoder_facts(root)
    return (f"encoder.root={root}",)


@pytest.fixture
def start(launchers: Launchers, producers: Producers, facts: tuple[str, ...]) -> Iterator[Start]:
    """Starts jobs; whatever is left of them at the test's end is ended, and is a failure."""
    jobs: list[Job] = []

    def begin(
        folder: Path, ranks: int, *settings: str, faults: Sequence[Fault] = (), restarts: int = 0, forked: bool = True
    ) -> Job:
        given = (*facts, *producers.overrides(), *settings)
        jobs.append(Job(launchers if forked else None, folder, ranks, given, faults, restarts))
        return jobs[-1]

    yield begin
    ended = [job for job in jobs if job.poll() is not None]
    end = time.monotonic() + LEAVE_S
    while (left := [process for job in ended for process in job.left()]) and time.monotonic() < end:
        time.sleep(0.05)
    for job in jobs:
        job.close()
    assert not left, f"outlived their launcher: {left}"
