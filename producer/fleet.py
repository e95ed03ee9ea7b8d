"""The fleet on Ray: it starts, places and restarts processes, nothing more. All that matters is said over Flight."""

import json
import logging
import os
import secrets
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from producer.api.channel import Access, Channel, gate, write_registry
from producer.api.local import sweep
from producer.api.protocol import Welcome
from producer.cluster import cluster
from producer.crew import Crew
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
                "journal": config.journal_file.absolute(),
                "tls": config.tls and config.tls.absolute(),
            }
        )
        self.job = job
        self.address = self.plan = ""
        self._stack = ExitStack()
        self._access = Access("")
        self._coordinator: Any = None  # Ray actors
        self._crew = Crew(self._host, frozen_s=config.frozen_s, leave_s=config.leave_s)
        self._offer: dict[str, Any] = {}
        self._asked = 0  # workers that Ray's autoscaler was last told of

    def __enter__(self) -> "Fleet":
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def balance(self) -> str:
        """What the plan predicts of equal work (producer/balance.py)."""
        return str(self._offer.get("balance", ""))

    def status(self) -> dict[str, Any]:
        """The coordinator's counters. UnreachableError while it restarts."""
        channel = Channel(self.address, self._access)
        try:
            return dict(json.loads(channel.ask_raw("status", b"", _STATUS_S)))
        finally:
            channel.close()

    def watch(self, status: dict[str, Any]) -> list[str]:
        """Replace workers that have been silent for too long (Ray only notices those that end); their names."""
        return self._crew.watch(status["workers"])

    @property
    def workers(self) -> int:
        """Those that are there or starting, without those that leave."""
        return len(self._crew.hosts)

    def resize(self, wanted: int) -> list[str]:
        """Come nearer to `wanted` workers without waiting for any; what happened, for people."""
        self._tell_autoscaler(wanted)
        return self._crew.resize(wanted, self._offer)

    def _tell_autoscaler(self, wanted: int) -> None:
        """On a cluster, ask for machines for `wanted` workers; where nothing scales it the request has no effect."""
        if wanted == self._asked or self.config.address == "local":
            return
        self._asked = wanted
        one = {"CPU": self.config.cpus_per_worker}
        if self.config.gpus_per_worker:
            one["GPU"] = self.config.gpus_per_worker
        try:
            request_resources(bundles=[one] * wanted)
        except Exception as error:
            # Ray raises errors of many kinds here; the workers there are go on without more machines.
            log.warning("Ray's autoscaler could not be told that %d workers are wanted: %s", wanted, error)

    def stop(self) -> None:
        """End workers, coordinator and a Ray of our own; remove the registry file."""
        self.config.registry.unlink(missing_ok=True)
        if self._asked and ray.is_initialized():
            self._tell_autoscaler(0)
        self._crew.stop(_STOP_S)
        if self._coordinator is not None:
            ray.kill(self._coordinator)
        self._coordinator = None
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
        self._tell_autoscaler(config.workers)
        offer = self._agreed(self._crew.start(config.workers))
        self.plan, self._offer = offer.plan, vars(offer)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        coordinator = ray.remote(CoordinatorHost).options(
            num_cpus=_COORDINATOR_CPUS, max_restarts=-1, scheduling_strategy=here
        )
        token = self._access.token
        self._coordinator = coordinator.remote(config.model_dump_json(), json.dumps(vars(offer)), port, token)
        self._answer([self._coordinator.ready.remote()], "the coordinator")
        write_registry(config.registry, self.address)

    def _host(self, name: str) -> Any:
        options = {
            "num_cpus": self.config.cpus_per_worker,
            "num_gpus": self.config.gpus_per_worker,
            "max_restarts": -1,
            "scheduling_strategy": "SPREAD",
        }
        # Plain strings, so that Ray's own serialisation carries nothing of ours.
        job, token = self.job.model_dump_json(), self._access.token
        said = (self.config.model_dump_json(), self.job.kind, job, self.address, token)
        return ray.remote(WorkerHost).options(**options).remote(name, *said)

    def _agreed(self, answers: list[Any]) -> Welcome:
        """What all workers say the plan is; FleetError if they differ or one cannot start."""
        said = self._answer(answers, "the workers")
        offers = {name: Welcome(**answer) for name, answer in zip(self._crew.hosts, said, strict=True)}
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
