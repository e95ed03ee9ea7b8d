"""The fleet on Ray: it starts, places and restarts processes, nothing more. All that matters is said over Flight."""

import json
import logging
import os
import secrets
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from producer.api.channel import Access, Channel, gate, write_registry
from producer.api.local import sweep
from producer.api.protocol import Welcome
from producer.cluster import cluster
from producer.fleet_config import FleetConfig
from producer.host import CoordinatorHost, WorkerHost, reachable

if TYPE_CHECKING:
    from producer.produce import EncodeJob
    from producer.synthetic import SyntheticJob

log = logging.getLogger(__name__)

_COORDINATOR_CPUS = 0.05
_STATUS_S = 2.0  # the deadline of one look at the coordinator
_STOP_S = 1.5  # for workers to write what they gathered


class FleetError(ValueError):
    """The fleet cannot start, or its parts disagree."""


class Fleet:
    """Runs inside a `with` block, and leaves nothing behind it."""

    def __init__(self, config: FleetConfig, job: "EncodeJob | SyntheticJob") -> None:
        # Ray's processes may run in another folder.
        self.config = config.model_copy(
            update={
                "registry": config.registry.absolute(),
                "token": config.token_file.absolute(),
                "logs": config.log_folder.absolute(),
                "tls": config.tls and config.tls.absolute(),
            }
        )
        self.job = job
        self.address = self.plan = ""
        self._stack = ExitStack()
        self._access = Access("")
        self._coordinator: Any = None  # Ray actors
        self._hosts: dict[str, Any] = {}  # by the worker's name
        self._heard: dict[str, float] = {}  # worker's name -> when it was last known to be there

    def __enter__(self) -> "Fleet":
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def status(self) -> dict[str, Any]:
        """The coordinator's counters. UnreachableError while it restarts."""
        channel = Channel(self.address, self._access)
        try:
            return dict(json.loads(channel.ask_raw("status", b"", _STATUS_S)))
        finally:
            channel.close()

    def watch(self, status: dict[str, Any]) -> list[str]:
        """Replace workers that have been silent for too long (Ray only notices those that end); their names."""
        now, replaced = time.monotonic(), []
        self._heard |= dict.fromkeys(status["workers"].keys() & self._hosts.keys(), now)
        for name, host in self._hosts.items():
            if now - self._heard[name] > self.config.frozen_s:
                log.warning("%s silent for %.0f s: replaced", name, now - self._heard[name])
                ray.kill(host, no_restart=False)
                self._heard[name] = now
                replaced.append(name)
        return replaced

    def stop(self) -> None:
        """End workers, coordinator and a Ray of our own; remove the registry file."""
        self.config.registry.unlink(missing_ok=True)
        if self._hosts and ray.is_initialized():
            ending = [host.stop.remote() for host in self._hosts.values()]
            ray.wait(ending, num_returns=len(ending), timeout=_STOP_S)
        for host in filter(None, (*self._hosts.values(), self._coordinator)):
            ray.kill(host)
        self._hosts, self._coordinator = {}, None
        self._stack.close()
        sweep()

    def _start(self) -> None:
        config = self.config
        self._check_cpus(os.cpu_count() or 1)
        self._access = Access(make_token(config.token_file), config.tls, config.plaintext)
        gate(config.host, config.port, self._access)
        self._stack.enter_context(
            cluster(config.address, object_store_bytes=config.object_store_mb << 20, setting="fleet.address")
        )
        self._check_cpus(ray.cluster_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]
        port = config.port or _free_port(config.host)
        self.address = f"{reachable(config.host)}:{port}"
        for index in range(config.workers):
            self._hosts[f"worker-{index}"] = self._host(index)
        self._heard = dict.fromkeys(self._hosts, time.monotonic())
        offer = self._agreed()
        self.plan = offer.plan
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        coordinator = ray.remote(CoordinatorHost).options(
            num_cpus=_COORDINATOR_CPUS, max_restarts=-1, scheduling_strategy=here
        )
        token = self._access.token
        self._coordinator = coordinator.remote(config.model_dump_json(), json.dumps(vars(offer)), port, token)
        self._answer([self._coordinator.ready.remote()], "the coordinator")
        write_registry(config.registry, self.address)

    def _host(self, index: int) -> Any:
        options = {
            "num_cpus": self.config.cpus_per_worker,
            "num_gpus": self.config.gpus_per_worker,
            "max_restarts": -1,
            "scheduling_strategy": "SPREAD",
        }
        # Plain strings, so that Ray's own serialisation carries nothing of ours.
        job, token = self.job.model_dump_json(), self._access.token
        said = (self.config.model_dump_json(), self.job.kind, job, self.address, token)
        return ray.remote(WorkerHost).options(**options).remote(f"worker-{index}", *said)

    def _agreed(self) -> Welcome:
        """What all workers say the plan is; FleetError if they differ or one cannot start."""
        said = self._answer([host.ready.remote() for host in self._hosts.values()], "the workers")
        offers = {name: Welcome(**answer) for name, answer in zip(self._hosts, said, strict=True)}
        if len(set(offers.values())) > 1:
            raise FleetError(f"workers disagree, so they are not the same release, files or machines: {offers}")
        return next(iter(offers.values()))

    def _answer(self, references: list[Any], who: str) -> list[dict[str, Any]]:
        try:
            answers = ray.get(references, timeout=self.config.start_s)
        except ray.exceptions.GetTimeoutError:
            raise FleetError(
                f"fleet.start_s: {who} did not start within {self.config.start_s:g} s; see {self.config.log_folder}"
            ) from None
        except ray.exceptions.RayError as error:
            what = type(error).__name__
            raise FleetError(f"{who} died while starting ({what}); see {self.config.log_folder}") from None
        for answer in answers:
            if "error" in answer:
                raise FleetError(answer["error"])
        return answers

    def _check_cpus(self, there: float) -> None:
        """FleetError where Ray would wait for ever; on a cluster more machines may come."""
        wanted = self.config.workers * self.config.cpus_per_worker + _COORDINATOR_CPUS
        if self.config.address == "local" and wanted > there:
            raise FleetError(
                f"fleet.workers: {self.config.workers} of {self.config.cpus_per_worker:g} CPUs and a coordinator need "
                f"{wanted:g}, this machine has {there:g}: use fewer, or lower fleet.cpus_per_worker"
            )


def make_token(path: Path) -> str:
    """The secret in the file at `path`, which is made with mode 0600 if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token = path.read_text().strip()
        if path.stat().st_mode & 0o077:
            raise FleetError(f"{path}: others can read this token; chmod 600 it, or delete it for a new one") from None
        if len(token) < 32:
            raise FleetError(f"{path}: {len(token)} characters are no token; delete it for a new one") from None
        return token
    token = secrets.token_urlsafe(32)
    with os.fdopen(file, "w") as opened:
        opened.write(token)
    return token


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as server:
        return int(server.getsockname()[1])
