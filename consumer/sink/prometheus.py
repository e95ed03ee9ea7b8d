"""An endpoint that Prometheus scrapes: `/metrics`, and `/healthz` that says whether steps still end."""

import ipaddress
import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, model_validator

from consumer.metrics import CheckpointReport, Report, StepReport, ValidationReport
from consumer.sink.exposition import Metric

log = logging.getLogger(__name__)

_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class PrometheusConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    address: str = ""  # host:port that rank 0 listens on; none: nothing listens
    anyone: bool = False  # may other machines read? There is no password: a firewall must say who
    stale_s: float = Field(default=600.0, gt=0)  # without a report for so long, /healthz is 503

    @model_validator(mode="after")
    def _reachable(self) -> "PrometheusConfig":
        if self.address:
            host, _ = self.place
            if not self.anyone and not _loopback(host):
                raise ValueError(
                    f"prometheus.address: {self.address} is open to other machines, without a password; listen on "
                    "127.0.0.1, or say prometheus.anyone=true where a firewall decides who may read"
                )
        return self

    @property
    def place(self) -> tuple[str, int]:
        """Host and port; ValueError if `address` is not HOST:PORT."""
        try:
            parts = urlsplit(f"//{self.address}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or port is None or parts.path:
            raise ValueError(f"prometheus.address: {self.address!r}; write HOST:PORT, like 127.0.0.1:9400")
        return host, port


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# Gauges: the last step's, unless said otherwise. The label that tells its values apart, if any, stands in brackets.
_GAUGES = {
    "step": "Optimizer steps done, over all starts of the run.",
    "last_step_timestamp_seconds": "When the last step ended, seconds since 1970.",
    "loss": "Mean loss over samples.",
    "loss_by_level[sigma]": "Mean loss of the last samples seen of a bin of noise levels.",
    "loss_by_bucket[bucket]": "Mean loss of the last samples seen of a size.",
    "validation_loss": "Mean loss of the held-out samples, the last time.",
    "gradient_norm": "Global gradient norm before clipping.",
    "learning_rate": "Learning rate.",
    "step_duration_seconds": "Duration of a step.",
    "phase_duration_seconds[phase]": "Duration of a step's phases on rank 0.",
    "images_per_second": "Samples trained on a second, all ranks.",
    "tokens_per_second": "Image and text tokens trained on a second, all ranks.",
    "model_flops_utilization_ratio": "Model FLOP/s over the devices' peak.",
    "hardware_flops_utilization_ratio": "Executed FLOP/s, with what is computed again, over the devices' peak.",
    "recipe_entry": "Entry of the producers' recipe journal that made the last step's units.",
    "data_wait_ratio": "Share of the step that the slowest rank waited for data.",
    "peak_memory_bytes": "Most memory that any rank has had allocated.",
    "checkpoint_step": "Optimizer steps in the newest published checkpoint.",
    "checkpoint_duration_seconds": "Duration of the last save that ended, beside training.",
    "checkpoint_stall_seconds": "Seconds of it that training waited.",
    "checkpoint_bytes": "Size of rank 0's file in it.",
}
_COUNTERS = {
    "steps_total": "Steps that ended since this process started.",
    "skipped_steps_total": "Steps of them whose update was not applied.",
    "samples_total": "Samples trained on.",
    "tokens_total": "Image and text tokens trained on.",
    "model_flops_total": "Model FLOPs, forward and backward.",
    "step_seconds_total": "Seconds in steps.",
    "data_wait_seconds_total": "Seconds of them that the slowest rank waited for data.",
}
_SAVES = {
    "checkpoints_total": "Checkpoints published since this process started.",
    "failed_checkpoints_total": "Saves that failed, each of which is tried again.",
}


def _metrics() -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    for said, told in _GAUGES.items():
        name, _, label = said.rstrip("]").partition("[")
        found[name] = Metric(f"inkstone_{name}", "gauge", told, label)
    for name, told in (_COUNTERS | _SAVES).items():
        found[name] = Metric(f"inkstone_{name}", "counter", told, values={"": 0.0})
    return found


class Prometheus:
    """Serves from a thread of its own. OSError where the address cannot be had."""

    def __init__(self, config: PrometheusConfig) -> None:
        self._stale_s = config.stale_s
        self._metrics, self._lock = _metrics(), threading.Lock()
        self._heard = time.monotonic()
        self._server = _Server(config.place, self)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="prometheus", daemon=True).start()

    def __call__(self, report: Report) -> None:
        with self._lock:
            self._heard = time.monotonic()
            if isinstance(report, StepReport):
                self._step(report)
            elif isinstance(report, ValidationReport):
                self._metrics["validation_loss"].set(report.loss)
            elif isinstance(report, CheckpointReport):
                self._save(report)

    def _step(self, report: StepReport) -> None:
        levels = {name: part.loss for name, part in report.loss_by_level.items()}
        buckets = {name: part.loss for name, part in report.loss_by_bucket.items()}
        gauges: dict[str, float | dict[str, float]] = {
            "step": report.step,
            "last_step_timestamp_seconds": time.time(),
            "loss": report.loss,
            "loss_by_level": levels,
            "loss_by_bucket": buckets,
            "gradient_norm": report.gradient_norm,
            "learning_rate": report.rate,
            "step_duration_seconds": report.seconds,
            "phase_duration_seconds": report.split,
            "images_per_second": report.images_per_s,
            "tokens_per_second": report.tokens_per_s,
            "data_wait_ratio": report.wait_share,
            "recipe_entry": report.entry,
            "peak_memory_bytes": report.peak_memory,
        }
        if report.mfu is not None:
            gauges["model_flops_utilization_ratio"] = report.mfu
        if report.hfu is not None:
            gauges["hardware_flops_utilization_ratio"] = report.hfu
        for name, value in gauges.items():
            self._metrics[name].set(value)
        counted = (1, not report.applied, report.samples, report.tokens, report.flops, report.seconds, report.wait_s)
        for name, more in zip(_COUNTERS, counted, strict=True):
            self._metrics[name].add(more)

    def _save(self, report: CheckpointReport) -> None:
        self._metrics["checkpoints_total" if report.published else "failed_checkpoints_total"].add(1)
        if report.published:
            self._metrics["checkpoint_step"].set(report.step)
        self._metrics["checkpoint_duration_seconds"].set(report.seconds)
        self._metrics["checkpoint_stall_seconds"].set(report.stall_s)
        self._metrics["checkpoint_bytes"].set(report.nbytes)

    def text(self) -> str:
        """All metrics as they are now."""
        with self._lock:
            return "".join(metric.text() for metric in self._metrics.values())

    def health(self) -> tuple[int, str]:
        """200, or 503 where nothing was reported for too long; and a line that says so."""
        with self._lock:
            quiet = time.monotonic() - self._heard
        code = 200 if quiet <= self._stale_s else 503
        return code, f"{'ok' if code == 200 else 'stale'}: the last report is {quiet:.0f} s old\n"

    def close(self) -> None:
        """No more answers."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    # A thread a reader, none of which the process waits for at its end.
    daemon_threads = True

    def __init__(self, place: tuple[str, int], sink: Prometheus) -> None:
        self.sink = sink
        self.address_family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        super().__init__(place, _Handler)

    def server_bind(self) -> None:
        """Without the base class's look-up of the host's name, which may take minutes."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a reader of the metrics went away", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = 10.0  # seconds that a reader may take over a line
    server: _Server

    def do_GET(self) -> None:
        """The only thing that is asked."""
        if self.path == "/metrics":
            self._answer(200, self.server.sink.text(), _TEXT)
        elif self.path == "/healthz":
            self._answer(*self.server.sink.health())
        else:
            self._answer(404, "there is /metrics and /healthz\n")

    def _answer(self, code: int, body: str, kind: str = "text/plain; charset=utf-8") -> None:
        raw = body.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        """Readers come every few seconds; nobody wants to read of it."""

    def version_string(self) -> str:
        """Say nothing of the interpreter."""
        return "inkstone"
