"""The data plane struck by faults: nothing is lost, nothing comes twice, and the order stays what it was."""

from pathlib import Path

import pytest

from producer.api.channel import Channel, UnreachableError
from producer.api.unit import UnitId
from tests.chaos.command import strike
from tests.unit.producer.farm import TOKEN, farm


def test_a_connection_that_another_thread_closed_is_worth_another_try(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        channel = Channel(running.coordinator.address, TOKEN)
        channel.close()
        with pytest.raises(UnreachableError, match="closed"):
            channel.ask_raw("status", b"", 5.0)
        with pytest.raises(UnreachableError, match="closed"):
            channel.open(UnitId("train", 0, 0), 5.0)


def test_a_short_training_under_faults_is_the_undisturbed_one(tmp_path: Path) -> None:
    kinds = ["kill worker", "freeze worker", "kill coordinator", "kill trainer", "fill disk", "cut link"]
    said = strike(tmp_path, "--seed=4", "--steps=40", "--rows=128", "--faults=6", "--kinds", *kinds, timeout_s=250)
    assert said["faults"] == dict.fromkeys(kinds, 1)
    assert all(group["closed passes"] == 2 and group["rejected"] for group in said["groups"].values())
