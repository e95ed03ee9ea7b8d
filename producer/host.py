"""What the fleet runs in each of its processes: the coordinator, or one worker."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import ray

from producer.api.channel import Access
from producer.api.malloc import tune
from producer.api.protocol import Welcome
from producer.coordinator import Limits
from producer.coordinator_server import CoordinatorServer
from producer.fleet_config import FleetConfig
from producer.worker import Maker, Worker, WorkerSetup

log = logging.getLogger(__name__)

_BIND_S = 20.0  # for a coordinator to get the port of the one before


class CoordinatorHost:
    """The coordinator's process. Arguments are JSON; a restart gets the same ones."""

    def __init__(self, config: str, offer: str, port: int, token: str) -> None:
        tune()
        said = FleetConfig.model_validate_json(config, strict=True)
        _log_to(said.log_folder, "coordinator")
        plan = Welcome(**json.loads(offer))
        limits = Limits(
            horizon_bytes=said.horizon_bytes,
            heartbeat_s=said.heartbeat_s,
            lease_s=said.lease_s,
            late_s=said.late_s,
        )
        deadline = time.monotonic() + _BIND_S
        access = Access(token, said.tls, said.plaintext)
        while True:
            try:
                self._server = CoordinatorServer(
                    plan, limits, host=said.host, port=port, access=access, journal=said.journal_file
                )
                return
            except OSError:
                # The one before may not be quite gone.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def ready(self) -> dict[str, Any]:
        """Answers once it listens."""
        return {"pid": os.getpid()}


class WorkerHost:
    """One worker's process. Arguments are JSON; a restart gets the same ones."""

    def __init__(self, name: str, config: str, kind: str, job: str, coordinator: str, token: str) -> None:
        tune()
        said = FleetConfig.model_validate_json(config, strict=True)
        _log_to(said.log_folder, name)
        self._worker: Worker | None = None
        try:
            maker = _open(kind, job)
            setup = WorkerSetup(
                name=name,
                find=lambda: coordinator,
                access=Access(token, said.tls, said.plaintext),
                host=said.host,
                advertise=reachable(said.host),
                local=True,
                memory_bytes=said.worker_bytes,
                stuck_s=2 * said.late_s,
                give_up=_give_up,
            )
            self._worker = Worker(setup, maker)
            self._said: dict[str, Any] = vars(maker.offer)
        except (ValueError, OSError) as error:
            log.exception("%s cannot start", name)
            self._said = {"error": f"{type(error).__name__}: {error}"}

    def ready(self) -> dict[str, Any]:
        """What the plan is, or the error that keeps this worker from making its units."""
        return self._said

    def leave(self, grace_s: float) -> None:
        """Serve what is held until it is trained or for `grace_s`, then end."""
        if self._worker is not None:
            self._worker.leave(grace_s)

    def stop(self) -> None:
        """End in good order."""
        if self._worker is not None:
            self._worker.stop()


def _give_up() -> None:
    # Ray starts the process anew.
    logging.shutdown()
    os._exit(70)


def reachable(host: str) -> str:
    """What other machines call this one, if it binds to `host`."""
    return str(ray.util.get_node_ip_address()) if host == "0.0.0.0" else host  # type: ignore[no-untyped-call]


def _open(kind: str, job: str) -> Maker:
    # Here, since only those who encode need to import torch.
    if kind == "synthetic":
        from producer.synthetic import SyntheticJob, SyntheticMaker

        return SyntheticMaker(SyntheticJob.model_validate_json(job, strict=True))
    from producer.produce import EncodeJob, UnitMaker

    return UnitMaker(EncodeJob.model_validate_json(job, strict=True))


def _log_to(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"{name}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
