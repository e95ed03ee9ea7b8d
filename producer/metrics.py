"""What Prometheus reads of a fleet: the coordinator's counters and the workers', as of the last look at them.

Labels are bounded: workers are the fleet's own, trainers at most _TRAINERS, and a worker's counters at most
producer.api.protocol.NUMBERS.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

log = logging.getLogger(__name__)

_TRAINERS, _LABEL = 32, 64  # trainers shown, and the characters of one
_PREFIX = "inkstone_producer_"

# Of the coordinator's status, by its name there.
_GAUGES = {
    "units_ahead": ("units_ahead", "Training units ready that a trainer will still need."),
    "units_behind": ("units_behind", "Training units kept in case a trainer goes back."),
    "units_kept": ("units_kept", "Validation units and the empty prompt's that are ready."),
    "steps_ahead": ("steps_ahead", "Whole steps ready for the trainer for which the fewest are."),
    "waiting": ("units_waited_for", "Units that trainers wait for."),
    "leases": ("units_in_work", "Units being encoded."),
    "bytes_ahead": ("horizon_used_bytes", "Bytes of the training units that are ready."),
    "horizon_bytes": ("horizon_limit_bytes", "Bytes of training units that may be made ahead."),
    "images_per_s": ("images_per_second", "Images encoded a second by all workers, over the last half minute."),
    "entry": ("recipe_entry", "Number of the newest entry of the recipe journal."),
    "from_step": ("recipe_from_step", "Step from which that entry is in force."),
}
_COUNTERS = {
    "registered": ("units", "Units made."),
    "samples": ("images", "Images in them."),
    "rejected": ("left_out_samples", "Samples that units had to leave out."),
    "refused": ("refused_units", "Units made in vain: another worker was first, or nobody needed them any longer."),
    "lost": ("lost_units", "Units that a worker did not deliver; they were made again."),
    "failed": ("failed_units", "Tries at a unit that failed; they were made again."),
    "late": ("late_units", "Units given to another worker because one took too long."),
    "silenced": ("silenced_workers", "Times that a worker fell silent or was started anew."),
}
# Of a worker's own counters (Worker.numbers), by their name there.
_WORKER_GAUGES = {
    "ring_units": ("ring_units", "Units a worker holds."),
    "ring_bytes": ("ring_used_bytes", "Bytes of the units a worker holds."),
}
_WORKER_COUNTERS = {
    "units": ("worker_units", "Units a worker made."),
    "samples": ("worker_images", "Images a worker made."),
    "making_seconds": ("worker_busy_seconds", "Seconds a worker spent making units."),
    "idle_seconds": ("worker_idle_seconds", "Seconds a worker had no unit to make."),
    "served_units": ("served_units", "Units a worker sent to trainers."),
    "served_bytes": ("served_bytes", "Bytes a worker sent to trainers."),
}
_STAGE = {
    "_seconds": ("stage_seconds", "Seconds a stage of encoding was busy, all its threads together."),
    "_samples": ("stage_images", "Images that went through a stage of encoding."),
}
_LEFT_OUT = "left_out_"


@dataclass(frozen=True)
class Look:
    """The fleet as it is seen at one time: the coordinator's status, the cache's and the workers' sizes."""

    status: Mapping[str, Any] = field(default_factory=dict)
    cache_bytes: int = 0
    cache_limit: int = 0  # 0: there is no cache
    ring_limit: int = 0  # bytes that each worker may hold
    wanted: int = 0  # workers
    reachable: bool = True  # did the coordinator answer?


class FleetMetrics:
    """Serves the last look on `host`:`port` (0: any free one) from a thread of its own; OSError where it cannot."""

    def __init__(self, host: str, port: int) -> None:
        self._look = Look(reachable=False)
        registry = CollectorRegistry()
        registry.register(_Collector(lambda: self._look))
        self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        self.port = int(self._server.server_address[1])

    def __call__(self, look: Look) -> None:
        """What is answered from now on."""
        self._look = look

    def close(self) -> None:
        """No more answers."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


class _Collector:
    def __init__(self, look: Callable[[], Look]) -> None:
        self._see = look
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """Prometheus calls this at every scrape."""
        with self._lock:
            yield from families(self._see())


def families(look: Look) -> Iterator[Metric]:
    """All metrics of one look; those of the coordinator are missing while it does not answer."""
    yield _gauge("coordinator_up", "Whether the coordinator answers.", float(look.reachable))
    yield _gauge("workers_wanted", "Workers that the lag calls for.", look.wanted)
    yield _gauge("cache_used_bytes", "Bytes of latents kept on disk.", look.cache_bytes)
    yield _gauge("cache_limit_bytes", "Bytes of latents that may be kept on disk.", look.cache_limit)
    yield _gauge("ring_limit_bytes", "Bytes of units that each worker may hold.", look.ring_limit)
    if not look.status:
        return
    for told, (name, said) in _GAUGES.items():
        yield _gauge(name, said, float(look.status.get(told, 0)))
    for told, (name, said) in _COUNTERS.items():
        yield CounterMetricFamily(_PREFIX + name, said, value=float(look.status.get(told, 0)))
    yield _gauge("workers", "Workers that speak.", len(look.status["workers"]))
    silence = GaugeMetricFamily(_PREFIX + "worker_silence_seconds", "Since a worker last spoke.", labels=["worker"])
    for worker, seconds in look.status["workers"].items():
        silence.add_metric([worker[:_LABEL]], seconds)
    yield silence
    trainers = GaugeMetricFamily(_PREFIX + "trainer_step", "The step that a trainer is at.", labels=["trainer"])
    for trainer, step in list(look.status["trainers"].items())[:_TRAINERS]:
        trainers.add_metric([trainer[:_LABEL]], step)
    yield trainers
    yield from _of_workers(look.status.get("numbers", {}))


def _gauge(name: str, said: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, said, value=value)


def _of_workers(numbers: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
    for told, (name, said) in _WORKER_GAUGES.items():
        gauge = GaugeMetricFamily(_PREFIX + name, said, labels=["worker"])
        for worker, counts in numbers.items():
            gauge.add_metric([worker[:_LABEL]], counts.get(told, 0.0))
        yield gauge
    for told, (name, said) in _WORKER_COUNTERS.items():
        counter = CounterMetricFamily(_PREFIX + name, said, labels=["worker"])
        for worker, counts in numbers.items():
            counter.add_metric([worker[:_LABEL]], counts.get(told, 0.0))
        yield counter
    for ending, (name, said) in _STAGE.items():
        counter = CounterMetricFamily(_PREFIX + name, said, labels=["worker", "stage"])
        for worker, counts in numbers.items():
            for stage, count in stages(counts, ending).items():
                counter.add_metric([worker[:_LABEL], stage], count)
        yield counter
    reasons = CounterMetricFamily(_PREFIX + "left_out_by_reason", "Samples left out.", labels=["worker", "reason"])
    others = CounterMetricFamily(_PREFIX + "events", "Whatever else a worker counts.", labels=["worker", "event"])
    for worker, counts in numbers.items():
        for told, count in counts.items():
            if told.startswith(_LEFT_OUT):
                reasons.add_metric([worker[:_LABEL], told.removeprefix(_LEFT_OUT)[:_LABEL]], count)
            elif told not in _WORKER_GAUGES | _WORKER_COUNTERS and not told.endswith(tuple(_STAGE)):
                others.add_metric([worker[:_LABEL], told[:_LABEL]], count)
    yield reasons
    yield others


def stages(counts: Mapping[str, float], ending: str) -> dict[str, float]:
    """A worker's counters that end in `ending` (_seconds or _samples), by stage."""
    found = {told.removesuffix(ending): count for told, count in counts.items() if told.endswith(ending)}
    return {stage: count for stage, count in found.items() if f"{stage}{ending}" not in _WORKER_COUNTERS}


def left_out(numbers: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Samples left out by all workers since they started, by reason."""
    found: dict[str, float] = {}
    for counts in numbers.values():
        for told, count in counts.items():
            if told.startswith(_LEFT_OUT):
                reason = told.removeprefix(_LEFT_OUT)
                found[reason] = found.get(reason, 0.0) + count
    return found
