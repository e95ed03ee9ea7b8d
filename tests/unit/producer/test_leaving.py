"""Workers come and go while a training runs: the order of samples stays, and nothing is lost or left."""

import threading
import time
from dataclasses import replace
from pathlib import Path

from tests.unit.producer.farm import LIMITS, farm, schedule, train, until
from tests.unit.producer.test_worker import made

PATIENT = replace(LIMITS, lease_s=30.0)  # on a busy machine nobody is taken for dead


def test_the_sequence_is_the_same_with_one_worker_then_three_then_two(tmp_path: Path) -> None:
    with farm(tmp_path, limits=PATIENT) as running:
        workers = [running.worker("w0")]
        source = running.source()
        source.hello(0)
        source.follow(schedule, 0, 30)
        got, leaving = [], []
        for step in range(30):
            if step == 8:
                workers += [running.worker("w1"), running.worker("w2")]
                until(lambda: len(running.status()["workers"]) == 3)
            if step == 18:
                # The one that has been there from the start, with all that it holds.
                leaving = [threading.Thread(target=workers[0].leave, args=(20.0,))]
                leaving[0].start()
            got += [source.next_unit(unit).serialize().to_pybytes() for unit in schedule(step)]
            source.ack(step)
        leaving[0].join(60)
        assert got == made(30)
        until(lambda: set(running.status()["workers"]) == {"w1", "w2"})
        status = running.status()
        assert status["lost"] == status["silenced"] == status["failed"] == 0


def test_a_worker_that_leaves_at_once_hands_back_what_it_holds_to_be_made_again(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        first = running.worker("w0")
        running.source().hello(0)
        until(lambda: running.status()["units_ahead"] > 4)
        running.worker("w1")
        until(lambda: len(running.status()["workers"]) == 2)
        first.leave(0.0)
        until(lambda: set(running.status()["workers"]) == {"w1"})
        until(lambda: running.status()["units_ahead"] > 4 and running.status()["units_kept"] == 3)
        source = running.source(incarnation=2)
        source.hello(0)
        source.follow(schedule, 0, 3)
        got = [source.next_unit(unit).serialize().to_pybytes() for step in range(3) for unit in schedule(step)]
        assert got == made(3) and running.status()["lost"] == 0


def test_a_question_that_is_answered_just_as_its_time_ends_is_no_error(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        server, unit, ended = running.coordinator, train(0, 0), threading.Event()

        def wait() -> None:
            with server._lock:
                server._wait(unit, 0.05)
            ended.set()

        threading.Thread(target=wait, daemon=True).start()
        until(lambda: unit in server._waiting)
        with server._lock:
            # By its end the time is up, and the waiting thread wants the lock.
            time.sleep(0.3)
            server._wake(unit)
        assert ended.wait(10.0)
