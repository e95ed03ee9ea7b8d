"""The data plane struck by faults: nothing is lost, nothing comes twice, and the order stays what it was."""

from pathlib import Path

import pytest

from producer.api.channel import Channel, UnreachableError
from producer.api.unit import UnitId
from tests.unit.producer.farm import TOKEN, farm


def test_a_connection_that_another_thread_closed_is_worth_another_try(tmp_path: Path) -> None:
    with farm(tmp_path) as running:
        channel = Channel(running.coordinator.address, TOKEN)
        channel.close()
        with pytest.raises(UnreachableError, match="closed"):
            channel.ask_raw("status", b"", 5.0)
        with pytest.raises(UnreachableError, match="closed"):
            channel.open(UnitId("train", 0, 0), 5.0)
