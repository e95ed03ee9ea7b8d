"""The fleet on a Ray cluster of two nodes, both this machine: spread over them, grown, and outliving one's death."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from consumer.source.flight import FlightSource
from consumer.source.producers import PullConfig
from producer.api.channel import UnreachableError
from producer.api.unit import UnitId
from producer.cluster import _loopback_alone
from producer.fleet import Fleet
from producer.fleet_config import FleetConfig
from producer.synthetic import SyntheticJob, SyntheticMaker

JOB = SyntheticJob(units=2, validation_units=1, samples=2, bucket="64x64", tokens=8, width=8)


def until(fine: Callable[[], Any], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not fine():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def schedule(step: int) -> list[UnitId]:
    return [UnitId("train", step, unit) for unit in range(JOB.units)]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cluster, Any]]:
    """A head and a second node, of two CPUs each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Elsewhere Ray takes 127.0.0.1 for the machine's own address, also when it joins.
    with (
        tempfile.TemporaryDirectory(prefix="ink2-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        _loopback_alone(),
    ):
        small = {"num_cpus": 2, "object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}
        cluster = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False, "temp_dir": folder})
        second = cluster.add_node(**small)
        cluster.wait_for_nodes()
        try:
            yield cluster, second
        finally:
            ray.shutdown()
            cluster.shutdown()


def speaking(fleet: Fleet) -> set[str]:
    """The workers that the coordinator hears; none while it does not answer."""
    try:
        return set(fleet.status()["workers"])
    except UnreachableError:
        return set()


def places(fleet: Fleet) -> set[str]:
    """The nodes that workers are on."""
    return {
        str(ray.get(host.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()), timeout=60))
        for host in fleet._crew.hosts.values()
    }


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_fleet_spreads_over_two_nodes_grows_and_outlives_one(tmp_path: Path, nodes: tuple[Cluster, Any]) -> None:
    cluster, second = nodes
    config = FleetConfig(
        registry=tmp_path / "coordinator.json",
        address=cluster.address,
        workers=2,
        max_workers=3,
        cpus_per_worker=0.5,
        horizon_bytes=100_000,
        heartbeat_s=0.3,
        lease_s=5.0,
        leave_s=5.0,
    )
    maker = SyntheticMaker(JOB)
    with Fleet(config, JOB) as fleet:
        assert len(places(fleet)) == 2
        source = FlightSource(PullConfig(registry=config.registry, wait_s=240.0), "t", 1)
        source.hello(0)
        source.follow(schedule, 0, 30)
        for step in range(30):
            if step == 5:
                assert fleet.resize(3) == ["worker-2 starts"]
                until(lambda: len(speaking(fleet)) == 3)
                until(lambda: fleet.resize(3) == ["worker-2 joined"])
            if step == 12:
                assert fleet.resize(2) == ["worker-2 leaves"]
                until(lambda: "worker-2 left" in fleet.resize(2))
                until(lambda: speaking(fleet) == {"worker-0", "worker-1"})
            if step == 18:
                cluster.remove_node(second, allow_graceful=False)
            for unit in schedule(step):
                assert source.next_unit(unit).equals(maker(unit)[0])
            source.ack(step)
        source.close()
        # Ray starts the worker of the dead node on the other.
        until(lambda: len(speaking(fleet)) == 2)
        assert len(places(fleet)) == 1
    assert not config.registry.exists()
