"""Samples that end the process which encodes them: found, journaled and left out, and the fleet goes on.

The processes are real and really die, by SIGKILL in the decoder or the text encoder.
"""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from producer.api.channel import read_registry
from producer.api.unit import UnitId, unpack
from producer.coordinator import Limits
from producer.encode import Encoder
from producer.produce import EncodeJob, UnitMaker
from producer.rejects import Rejects
from producer.worker import Worker, WorkerSetup
from tests.unit.producer.farm import TOKEN, Farm
from tests.unit.producer.photos import BROKEN, captions, jpeg, make_photos
from tests.unit.producer.test_produce import job

# One that is not the broken one; it is in a unit of every step.
POISON = 5
KEY = f"photos/{POISON:03d}"

# Its children begin with torch imported, which takes them seconds otherwise.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["producer.produce", "model.prompt", "model.vae", "tests.unit.producer.photos"])


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("poison"))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def poison_picture() -> None:
    """Let the marked picture end this process."""
    from producer import produce

    whole, marked = produce.picture, jpeg(POISON)
    produce.picture = lambda image, bucket: die() if image == marked else whole(image, bucket)  # type: ignore[assignment]


def poison_text(deadly: Callable[[list[str]], bool]) -> None:
    text = Encoder.text
    Encoder.text = lambda self, said, *shown: die() if deadly(list(said)) else text(self, said, *shown)  # type: ignore


def poison_caption() -> None:
    marked = str(captions(POISON)[0]["text"])
    poison_text(lambda said: marked in said)


def poison_together() -> None:
    """No caption is deadly alone."""
    poison_text(lambda said: sum(bool(one) for one in said) > 1)


def run_worker(registry: str, job: str) -> None:
    poison_picture()
    setup = WorkerSetup("w0", lambda: read_registry(Path(registry)), TOKEN)
    Worker(setup, UnitMaker(EncodeJob.model_validate_json(job)))
    while os.getppid() != 1:
        time.sleep(0.2)


@contextmanager
def restarted(*arguments: str) -> Iterator[list[Any]]:
    """A worker that is started anew whenever it dies, as Ray does; the processes so far."""
    processes: list[Any] = []
    ended = threading.Event()

    def keep() -> None:
        while not ended.is_set():
            if not processes or not processes[-1].is_alive():
                processes.append(CONTEXT.Process(target=run_worker, args=arguments, daemon=True))
                processes[-1].start()
            ended.wait(0.1)

    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        yield processes
    finally:
        ended.set()
        keeper.join()
        for process in processes:
            process.kill()
            process.join(10)


def undisturbed(job: EncodeJob, units: list[UnitId]) -> dict[UnitId, dict[str, Any]]:
    maker = UnitMaker(job)
    found = {unit: {sample.key: sample for sample in unpack(maker(unit)[0])[1]} for unit in units}
    maker.close()
    return found


@pytest.mark.timeout(900)
def test_a_picture_that_kills_its_workers_is_left_out_and_the_fleet_goes_on(
    raw: Path, encoders: Path, tmp_path: Path
) -> None:
    units = [UnitId("train", step, unit) for step in range(2) for unit in range(2)]
    whole = undisturbed(job(raw, encoders, tmp_path / "whole"), units)
    assert any(KEY in samples for samples in whole.values())
    mine = job(raw, encoders, tmp_path / "own")
    maker = UnitMaker(mine)
    running = Farm(tmp_path, limits=Limits(horizon_bytes=1 << 30, heartbeat_s=0.1, lease_s=20.0))
    running.coordinator.stop()
    running.offer = maker.offer
    running.start_coordinator()
    try:
        source = running.source(wait_s=120.0)
        with restarted(str(running.registry), mine.model_dump_json()) as processes:
            source.hello(0)
            got = {unit: unpack(source.fetch(unit)) for unit in units}
        deaths = len(processes) - 1
    finally:
        running.close()
        maker.close()
    for unit, (header, samples) in got.items():
        assert [sample.key for sample in samples] == [key for key in whole[unit] if key != KEY]
        # The neighbours have the bits that they have without it.
        for sample in samples:
            assert sample.text.tobytes() == whole[unit][sample.key].text.tobytes()
            assert sample.latent.mean.tobytes() == whole[unit][sample.key].latent.mean.tobytes()
        planned = len(maker._plan.step(unit.step)[unit.unit].rows)
        assert header.rejected == planned - len(samples)
    lines = [json.loads(line) for line in (tmp_path / "own" / "rejects.jsonl").read_text().splitlines()]
    reasons = {(tuple(line["unit"]), line["key"]): line["reason"] for line in lines if "reason" in line}
    poisoned = [unit for unit in units if KEY in whole[unit]]
    assert all(reasons[tuple(unit), KEY] == "killed its worker: by its picture" for unit in poisoned)
    assert {key for _, key in reasons} <= {KEY, BROKEN}
    # Twice as a unit, twice alone, whatever the number of units that it is in; a silence may pass for a death.
    assert 2 <= deaths <= 4


def narrow(job: str, poison: Callable[[], None]) -> None:
    poison()
    maker = UnitMaker(EncodeJob.model_validate_json(job))
    maker.narrow(UnitId("train", 0, 0))
    maker.close()


@pytest.mark.parametrize(
    "poison", [poison_caption, pytest.param(poison_together, marks=pytest.mark.long)], ids=["one", "all together"]
)
def test_captions_that_kill_are_left_out_too(
    raw: Path, encoders: Path, tmp_path: Path, poison: Callable[[], None]
) -> None:
    mine, unit = job(raw, encoders, tmp_path), UnitId("train", 0, 0)
    codes = []
    for _ in range(4 if poison is poison_together else 3):
        process = CONTEXT.Process(target=narrow, args=(mine.model_dump_json(), poison))
        process.start()
        process.join(120)
        codes.append(process.exitcode)
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
    maker = UnitMaker(mine)
    planned = [f"photos/{row:03d}" for row in maker._plan.step(0)[0].rows]
    assert KEY in planned
    together = poison is poison_together
    left_out = Rejects(mine.rejects).known(maker.offer.plan, unit)
    assert (
        left_out[KEY]
        == f"killed its worker: {'its unit did, and no sample of it alone' if together else 'by its caption'}"
    )
    # Whoever makes it next gives the deadly words to nobody, and the same unit.
    given: list[list[str]] = []
    text = maker._encoder.text
    maker._encoder.text = lambda said, *shown: given.append(list(said)) or text(said, *shown)  # type: ignore
    header, samples = unpack(maker(unit)[0])
    assert [s.key for s in samples] == ([] if together else [k for k in planned if k not in (KEY, BROKEN)])
    assert header.rejected == len(planned) - len(samples)
    (said,) = given
    assert str(captions(POISON)[0]["text"]) not in said and len(said) == len(planned)
    assert maker(unit)[0].equals(maker.narrow(unit)[0])
    maker.close()


def test_only_tries_that_did_not_come_back_count(tmp_path: Path) -> None:
    unit, path = UnitId("train", 0, 0), tmp_path / "r.jsonl"

    def say(attempt: str, key: str) -> None:
        Rejects(path).append([{"plan": "p", "unit": unit, "attempt": attempt, "trying": [key, "picture"]}])

    say("1", "a")
    say("2", "z")
    say("2", "a")
    with Rejects(path).attempt("p", unit) as attempt:
        assert (attempt.deaths("a", "picture"), attempt.deaths("a", "caption")) == (2, 0)
        # What an attempt went on from needs no second try, of which each worker's time is only for so many.
        assert attempt.survived("z", "picture") and not attempt.survived("a", "picture")
        attempt.begin("a", "caption")
        attempt.begin("b", "picture")
    with pytest.raises(OSError, match="away"), Rejects(path).attempt("p", unit) as attempt:
        assert attempt.survived("a", "caption") and attempt.survived("b", "picture")
        attempt.begin("c", "picture")
        raise OSError("away")
    with Rejects(path).attempt("p", unit) as attempt:
        # An error kills nobody, and proves nothing.
        assert (attempt.deaths("a", "picture"), attempt.deaths("c", "picture")) == (2, 0)
        assert not attempt.survived("c", "picture")
    assert Rejects(path).known("p", unit) == {}
    assert Rejects(path).attempt("p", UnitId("train", 0, 1)).__enter__().deaths("a", "picture") == 0
