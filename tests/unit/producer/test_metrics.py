"""What people see of a real fleet in one process: metrics, the board that reads them, the terminal and plain lines."""

import io
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from launch.producer_console import ProducerView, line, rates
from producer.metrics import FleetMetrics, Look
from producer.synthetic import SyntheticMaker
from tests.unit.producer.farm import JOB, Farm, farm, schedule, until

BOARD = Path(__file__).parents[3] / "launch" / "cluster" / "grafana-producers.json"


class Counting(SyntheticMaker):
    """With the counters of a real maker."""

    def numbers(self) -> dict[str, float]:
        return {"vae_seconds": 2.0, "vae_samples": 8.0, "decode_seconds": 1.0, "decode_samples": 8.0} | {
            "left_out_picture": 3.0,
            "cache_evicted": 5.0,
        }


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Look]:
    with farm(tmp_path_factory.mktemp("farm")) as running:
        running.worker("w0", Counting(JOB))
        source = running.source()
        source.hello(0)
        source.follow(schedule, 0, 4)
        for step in range(4):
            for unit in schedule(step):
                source.next_unit(unit)
        source.ack(2)  # all was pulled ahead: nothing else need say where the trainer is
        until(lambda: served(running) >= 8 and running.status()["trainers"] == {"t": 3})
        yield Look(running.status(), cache_bytes=5, cache_limit=10, ring_limit=1 << 20, wanted=2)


def served(running: Farm) -> float:
    return float(running.status()["numbers"].get("w0", {}).get("served_units", 0))


def exposed(look: Look) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """All samples that a scrape gets, by name and labels."""
    metrics = FleetMetrics("127.0.0.1", 0)
    try:
        metrics(look)
        text = urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=10).read().decode()
    finally:
        metrics.close()
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_a_scrape_has_what_the_fleet_did(look: Look) -> None:
    found = exposed(look)
    assert found["inkstone_producer_units_total"][()] >= 8
    assert found["inkstone_producer_served_units_total"][(("worker", "w0"),)] >= 8
    assert found["inkstone_producer_served_bytes_total"][(("worker", "w0"),)] > 1000
    assert found["inkstone_producer_stage_seconds_total"][(("stage", "vae"), ("worker", "w0"))] == 2.0
    assert found["inkstone_producer_stage_images_total"][(("stage", "decode"), ("worker", "w0"))] == 8.0
    assert found["inkstone_producer_left_out_by_reason_total"][(("reason", "picture"), ("worker", "w0"))] == 3.0
    assert found["inkstone_producer_events_total"][(("event", "cache_evicted"), ("worker", "w0"))] == 5.0
    assert found["inkstone_producer_trainer_step"][(("trainer", "t"),)] == 3
    assert found["inkstone_producer_workers_wanted"][()] == 2
    assert found["inkstone_producer_ring_used_bytes"][(("worker", "w0"),)] > 0


def test_every_metric_and_label_on_the_board_is_exposed_by_a_real_fleet(look: Look) -> None:
    board = json.loads(BOARD.read_text())
    found = exposed(look)
    asked = [(panel["title"], target) for panel in board["panels"] for target in panel["targets"]]
    assert len(asked) > 20
    for title, target in asked:
        names = re.findall(r"inkstone_\w+", target["expr"])
        assert names, title
        for name in names:
            assert name in found, f"{title}: nothing is called {name}"
        labels = {label for name in names for sample in found[name] for label, _ in sample}
        said = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]) + re.findall(r"by \((\w+)\)", target["expr"])
        assert set(said) <= labels, f"{title}: {said}, there is {labels}"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_while_the_coordinator_restarts_the_endpoint_says_so_and_nothing_else_of_it() -> None:
    found = exposed(Look(reachable=False))
    assert found["inkstone_producer_coordinator_up"] == {(): 0.0}
    assert "inkstone_producer_units_ahead" not in found


def test_labels_are_bounded_whatever_trainers_and_workers_call_themselves(look: Look) -> None:
    many = {**look.status, "trainers": {f"{n}" * 900: n for n in range(900)}}
    found = exposed(Look(many))["inkstone_producer_trainer_step"]
    assert len(found) <= 32 and all(len(value) <= 64 for sample in found for _, value in sample)


def test_off_a_terminal_there_are_plain_lines_every_third_look_and_each_note_once(look: Look) -> None:
    out = io.StringIO()
    view = ProducerView(Console(file=out, width=80))
    for _ in range(5):
        view(look)
        view.note("train step 1 unit 0", "[making] it failed")
    view(look, last=True)
    view.close()
    lines = out.getvalue().splitlines()
    assert len(lines) == 4 and lines[1] == "train step 1 unit 0: [making] it failed"
    assert "units ahead" in lines[0] and "t at step 3" in lines[0] and "\x1b" not in out.getvalue()
    assert lines[0] == line(look)


def test_on_a_terminal_one_view_shows_fleet_workers_and_stages(look: Look) -> None:
    out = io.StringIO()
    view = ProducerView(Console(file=out, width=160, force_terminal=True))
    view(look)
    counts = look.status["numbers"]["w0"]
    later = {**look.status, "numbers": {"w0": {name: count + 4.0 for name, count in counts.items()}}}
    view(Look(later, cache_bytes=5, cache_limit=10, ring_limit=1 << 20, wanted=2))
    view.note("w0", "joined")
    view.close()
    said = out.getvalue()
    for part in (
        "horizon",
        "rings",
        "cache",
        "50%",
        "1 workers of 2 wanted",
        "vae",
        "decode",
        "w0: joined",
        "picture 7",
    ):
        assert part in said, part


def test_rates_leave_out_what_began_anew() -> None:
    before = {"a": {"x": 4.0, "y": 1.0}, "b": {"x": 9.0}}
    now = {"a": {"x": 8.0, "y": 1.0, "z": 3.0}, "b": {"x": 1.0}, "c": {"x": 5.0}}
    assert rates(before, now, 2.0) == {"a": {"x": 2.0, "y": 0.0}, "b": {}}
