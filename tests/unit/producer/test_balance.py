"""Ranks that would wait long for each other are refused before they train, by the number that the plan predicts."""

import json
from pathlib import Path

import pytest

from producer.api.channel import RefusedError
from producer.api.protocol import Hello, Welcome
from producer.balance import hold, lines, predicted
from producer.coordinator_server import CoordinatorServer
from producer.plan import PlanError
from tests.unit.producer.farm import LIMITS, TOKEN, farm
from tests.unit.producer.fixed import fixed_plan


def test_what_is_predicted_of_each_number_of_ranks_is_what_the_plan_checks() -> None:
    plan = fixed_plan()
    found = json.loads(predicted(plan))
    assert set(found["ranks"]) == {"1", "2", "4", "8"} and found["ranks"]["1"] == 0
    for count, share in found["ranks"].items():
        assert share == pytest.approx(plan.imbalance(int(count)), abs=1e-4)
        refused = share > found["limit"]
        assert refused == any(f"of {count} data" in line and "refused" in line for line in lines(json.dumps(found)))
        try:
            plan.check(int(count))
        except PlanError:
            assert refused
        else:
            assert not refused


def test_a_trainer_of_too_many_ranks_is_refused_with_the_numbers_and_others_are_not(tmp_path: Path) -> None:
    balance = json.dumps({"limit": 0.25, "ranks": {"1": 0.0, "2": 0.1, "4": 0.41}})
    with farm(tmp_path) as running:
        running.coordinator.stop()
        running.offer = Welcome("p", 4, 0, "e", balance=balance)
        running.start_coordinator()
        for ranks in (0, 1, 2, 3):
            welcome = running.source(trainer=f"t{ranks}").hello(0, ranks=ranks)
            assert welcome.balance == ""
        with pytest.raises(ValueError, match=r"costliest of 4 data-parallel ranks is predicted 41.0% .* is 25.0%; use"):
            running.source(trainer="t").hello(0, ranks=4)
        assert set(running.status()["trainers"]) == {"t0", "t1", "t2", "t3"}


def test_nothing_is_held_where_nothing_was_predicted() -> None:
    hold("", Hello("t", 1, 0, ranks=64))
    assert lines("") == []
    with pytest.raises(RefusedError, match=r"recipe\.max_imbalance"):
        hold(json.dumps({"limit": 0.1, "ranks": {"64": 0.2}}), Hello("t", 1, 0, ranks=64))
    server = CoordinatorServer(Welcome("p", 1, 0, "e"), LIMITS, host="127.0.0.1", port=0, access=TOKEN)
    server.stop()
