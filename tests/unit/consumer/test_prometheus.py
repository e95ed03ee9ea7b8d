"""What Prometheus scrapes: values in its format, and a health that turns when steps no longer end."""

import http.client
import time
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from consumer.metrics import CheckpointReport, Part, StepReport, ValidationReport
from consumer.sink.exposition import Metric
from consumer.sink.prometheus import Prometheus, PrometheusConfig

STALE_S = 0.3


def report(step: int, applied: bool = True, mfu: float | None = 0.41) -> StepReport:
    levels, buckets = {"0.0-0.1": Part(0.25, 3), "0.9-1.0": Part(float("nan"), 1)}, {"256x320": Part(0.5, 4)}
    return StepReport(
        step, 0.5, 1e-4, 1.5, applied, 4, 1000, 2e15, 2.0, 0.5, mfu, 70_000_000_000, levels, buckets, {"forward": 0.6}
    )


@pytest.fixture
def sink() -> Iterator[Prometheus]:
    served = Prometheus(PrometheusConfig(address="127.0.0.1:0", stale_s=STALE_S))
    yield served
    served.close()


def get(sink: Prometheus, path: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", sink.port, timeout=5)
    connection.request("GET", path)
    answer = connection.getresponse()
    said = answer.status, answer.headers["Content-Type"], answer.read().decode()
    connection.close()
    return said


def scraped(sink: Prometheus) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by name and by the values of labels, as Prometheus' own client reads them."""
    status, kind, text = get(sink, "/metrics")
    assert status == 200 and kind == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation and family.type in {"gauge", "counter"}
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
            found.setdefault(sample.name.removeprefix("inkstone_"), {})[tuple(sample.labels.values())] = sample.value
    return found


def test_counters_count_and_gauges_are_the_last_step_s(sink: Prometheus) -> None:
    assert scraped(sink)["steps_total"] == {(): 0}  # a rate needs the zero before the first
    for step in (101, 102):
        sink(report(step, applied=step == 101))
    sink(ValidationReport(102, 0.625, 9, 1.0))
    found = scraped(sink)
    assert {name: found[name][()] for name in found if name.endswith("_total")} == {
        "steps_total": 2,
        "skipped_steps_total": 1,
        "samples_total": 8,
        "tokens_total": 2000,
        "model_flops_total": 4e15,
        "step_seconds_total": 4,
        "data_wait_seconds_total": 1,
        "checkpoints_total": 0,
        "failed_checkpoints_total": 0,
    }
    assert found["step"] == {(): 102} and found["validation_loss"] == {(): 0.625}
    assert found["model_flops_utilization_ratio"] == {(): 0.41} and found["data_wait_ratio"] == {(): 0.25}
    assert found["images_per_second"] == {(): 2} and found["peak_memory_bytes"] == {(): 7e10}
    assert found["loss_by_bucket"] == {("256x320",): 0.5} and found["phase_duration_seconds"] == {("forward",): 0.6}
    assert found["loss_by_level"][("0.0-0.1",)] == 0.25 and found["loss_by_level"][("0.9-1.0",)] != 0
    assert abs(found["last_step_timestamp_seconds"][()] - time.time()) < 60


def test_saves_are_counted_and_measured(sink: Prometheus) -> None:
    sink(CheckpointReport(50, True, "", 2.0, 0.125, 3000))
    sink(CheckpointReport(60, False, "rank 1: No space left on device", 4.0, 0.25, 3000))
    found = {name: values[()] for name, values in scraped(sink).items() if "checkpoint" in name}
    assert found == {
        "checkpoints_total": 1,
        "failed_checkpoints_total": 1,
        "checkpoint_step": 50,
        "checkpoint_duration_seconds": 4,
        "checkpoint_stall_seconds": 0.25,
        "checkpoint_bytes": 3000,
    }


def test_what_is_not_known_is_not_there(sink: Prometheus) -> None:
    sink(report(1, mfu=None))
    assert "model_flops_utilization_ratio" not in scraped(sink) and "validation_loss" not in scraped(sink)


def test_health_turns_when_no_step_ends_and_back_when_one_does(sink: Prometheus) -> None:
    assert get(sink, "/healthz")[0] == 200
    time.sleep(STALE_S + 0.1)
    status, _, said = get(sink, "/healthz")
    assert status == 503 and said.startswith("stale")
    sink(report(1))
    assert get(sink, "/healthz")[0] == 200


def test_nothing_else_is_served(sink: Prometheus) -> None:
    assert get(sink, "/")[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", sink.port, timeout=5)
    connection.request("POST", "/metrics", body=b"x")
    assert connection.getresponse().status == 501
    connection.close()


def test_a_label_may_hold_any_text() -> None:
    metric = Metric("inkstone_odd", "gauge", "Odd.", "name", {'a"b\\c\nd': float("-inf")})
    (family,) = text_string_to_metric_families(metric.text())
    assert family.samples[0].labels == {"name": 'a"b\\c\nd'} and family.samples[0].value == float("-inf")


@pytest.mark.parametrize("address", ["127.0.0.1:9400", "localhost:9400", "[::1]:9400", ""])
def test_loopback_needs_no_leave(address: str) -> None:
    PrometheusConfig(address=address)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("0.0.0.0:9400", "open to other machines"),
        ("[::]:9400", "open to other machines"),
        ("trainer-3:9400", "open to other machines"),
        ("9400", "write HOST:PORT"),
        ("127.0.0.1", "write HOST:PORT"),
        ("127.0.0.1:no", "write HOST:PORT"),
        ("127.0.0.1:94000", "write HOST:PORT"),
        ("http://127.0.0.1:9400", "write HOST:PORT"),
    ],
)
def test_an_address_that_others_reach_or_that_is_none_is_refused(address: str, said: str) -> None:
    with pytest.raises(ValidationError, match=rf"prometheus.address: .*{said}"):
        PrometheusConfig(address=address)


def test_others_may_read_where_it_is_said() -> None:
    assert PrometheusConfig(address="0.0.0.0:9400", anyone=True).place == ("0.0.0.0", 9400)


def test_a_closed_endpoint_leaves_its_port(sink: Prometheus) -> None:
    with pytest.raises(OSError):
        Prometheus(PrometheusConfig(address=f"127.0.0.1:{sink.port}"))
    first = Prometheus(PrometheusConfig(address="127.0.0.1:0"))
    first.close()
    second = Prometheus(PrometheusConfig(address=f"127.0.0.1:{first.port}"))
    second.close()
