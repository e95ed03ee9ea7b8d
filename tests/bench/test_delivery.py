"""Delivery to a trainer rank against plain TCP, Ray's object store across raylets, and webdataset with DataLoader.

The same encoded units, in the same run, taking turns; GB/s, and CPU seconds a GB of both sides. Ours is the real thing:
located, sent, every checksum compared and every sample unpacked, all of which the peers leave out.
"""

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.bench.delivery_case import Side, loader, ray_pull, tcp_client, tcp_server, trainer, worker
from tests.bench.report import record

TURNS = 5
SHARE_OF_TCP = 0.65
CPU_OF_PEERS = 2.0  # how many times less CPU a GB than Ray and DataLoader


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[dict[str, tuple[Side, ...]]]:
    """For each way, the side that takes, and the others whose CPU counts."""
    with ExitStack() as stack:

        def side(*arguments: object) -> Side:
            made = Side(*arguments)  # type: ignore[arg-type]
            stack.callback(made.end)
            return made

        for name in ("far", "near", "tars"):
            (tmp_path / name).mkdir()
        port = str(tmp_path / "port")
        far, near = (side(worker, str(tmp_path / name), name == "near") for name in ("far", "near"))
        server = side(tcp_server, port)
        yield {
            "ours": (side(trainer, str(tmp_path / "far")), far),
            "ours, same machine": (side(trainer, str(tmp_path / "near")), near),
            "TCP": (side(tcp_client, port), server),
            "Ray": (side(ray_pull),),
            "DataLoader": (side(loader, str(tmp_path / "tars")),),
        }


def test_delivery_against_its_peers(sides: dict[str, tuple[Side, ...]]) -> None:
    speed: dict[str, list[float]] = {name: [] for name in sides}
    cost: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(TURNS + 1):
        for name, (taker, *others) in sides.items():
            if name == "Ray" or name.startswith("ours"):
                taker.ask("prepare")
            before = [other.ask("cpu") for other in others]
            seconds, cpu, size = taker.ask("turn")
            cpu += sum(other.ask("cpu") - was for other, was in zip(others, before, strict=True))
            if turn:  # the first one warms up
                speed[name].append(size / 1e9 / seconds)
                cost[name].append(cpu / (size / 1e9))
    print(f"\n{size / 1e6:.0f} MB a turn, medians of {TURNS} alternating turns")
    for name in sides:
        spread = f"{min(speed[name]):.2f} to {max(speed[name]):.2f}"
        print(f"{name:20} {middle(speed[name]):5.2f} GB/s ({spread}), {middle(cost[name]):.2f} CPU s a GB")
    share = middle([ours / peer for ours, peer in zip(speed["ours"], speed["TCP"], strict=True)])
    cases = {
        "delivery: GB/s against plain TCP": case(speed, "TCP", share, SHARE_OF_TCP, "GB/s"),
        "delivery: CPU a GB against Ray": case(cost, "Ray", ratio(cost, "Ray"), CPU_OF_PEERS, "CPU s/GB"),
        "delivery: CPU a GB against DataLoader": case(
            cost, "DataLoader", ratio(cost, "DataLoader"), CPU_OF_PEERS, "CPU s/GB"
        ),
    }
    record("data.json", cases)
    missed = {name: said for name, said in cases.items() if float(str(said["ratio"])) < float(str(said["target"]))}
    assert not missed


def middle(values: list[float]) -> float:
    return statistics.median(values)


def ratio(values: dict[str, list[float]], peer: str) -> float:
    """How many times less ours takes, turn by turn."""
    return middle([theirs / ours for ours, theirs in zip(values["ours"], values[peer], strict=True)])


def case(values: dict[str, list[float]], peer: str, ratio: float, target: float, unit: str) -> dict[str, object]:
    return {
        "ours": middle(values["ours"]),
        "peer": middle(values[peer]),
        "ratio": ratio,
        "target": target,
        "unit": unit,
    }
