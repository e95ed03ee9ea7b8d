"""The fleet's settings, apart from fleet.py so that reading them does not import Ray."""

from pathlib import Path

from pydantic import BaseModel, Field, model_validator

from producer.api.channel import is_loopback
from producer.api.tls import Tls


class FleetConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """How many workers, where they run, how far ahead of the trainers, and when one counts as gone."""

    registry: Path  # says where the coordinator listens, while the fleet runs; trainers read it
    token: Path | None = None  # the secret on every call, made on first use with mode 0600; none: "token" beside it
    rejects: Path | None = None  # journal of left-out samples, seen by all workers; none: "rejects.jsonl" beside it
    journal: Path | None = None  # of recipes, written by the coordinator; none: "journal.jsonl" beside it
    logs: Path | None = None  # folder of the workers' logs; none: "logs" beside it
    workers: int = Field(default=1, ge=1)  # with max_workers: the fewest
    max_workers: int = Field(default=0, ge=0)  # as many as the lag calls for (docs/data-plane.md); 0: always `workers`
    settle_s: float = Field(default=60.0, gt=0)  # after a change of their number; longer than a worker's start takes
    leave_s: float = Field(default=120.0, ge=0)  # for a leaving worker to serve what it holds; the rest is made again
    cpus_per_worker: float = Field(default=0.5, gt=0)  # as Ray counts them; fractions let everything start on 2 cores
    gpus_per_worker: float = Field(default=0.0, ge=0)
    # What coordinator and workers bind to; 0.0.0.0 opens them to other machines, which asks for tls (docs/security.md).
    host: str = Field(default="127.0.0.1", min_length=1)
    tls: Tls | None = None  # at the same paths on every machine of the fleet
    plaintext: bool = False  # other machines come in without TLS: only in a network where nobody else is
    port: int = Field(default=0, ge=0, le=65535)  # the coordinator's, kept when it restarts; 0: a free one at start
    horizon_bytes: int = Field(default=2 << 30, gt=0)  # of units made ahead of the trainers; at least two steps are
    worker_bytes: int = Field(default=4 << 30, gt=0)  # held by one worker; beyond it only what is needed at once
    heartbeat_s: float = Field(default=1.0, gt=0)  # between a worker's words
    lease_s: float = Field(default=15.0, gt=0)  # of silence until a worker's units go to others
    late_s: float = Field(default=300.0, gt=0)  # on one unit until another worker gets it too
    start_s: float = Field(default=600.0, gt=0)  # for all workers to load their encoders
    frozen_s: float = Field(default=600.0, gt=0)  # of silence until a worker is replaced; longer than its start takes
    address: str = "local"  # of Ray: local starts its own, auto or host:port joins a cluster
    metrics_port: int = Field(default=-1, ge=-1, le=65535)  # for Prometheus, on the head; -1: none; 0: a free one
    metrics_host: str = Field(default="127.0.0.1", min_length=1)
    metrics_anyone: bool = False  # may other machines read them? There is no password: a firewall must say who
    object_store_mb: int = Field(default=80, ge=80)  # of a local Ray; units never travel through it

    @model_validator(mode="after")
    def _outlives_its_words(self) -> "FleetConfig":
        if self.lease_s <= 2 * self.heartbeat_s:
            raise ValueError(
                f"fleet.lease_s: {self.lease_s:g} s ends while a worker that speaks every fleet.heartbeat_s "
                f"{self.heartbeat_s:g} s is well; make it more than twice that"
            )
        return self

    @model_validator(mode="after")
    def _has_bounds(self) -> "FleetConfig":
        if 0 < self.max_workers < self.workers:
            raise ValueError(
                f"fleet.max_workers: {self.max_workers} is fewer than fleet.workers {self.workers}, which are always "
                "there; make it at least as many, or 0"
            )
        if self.metrics_port >= 0 and not self.metrics_anyone and not is_loopback(self.metrics_host):
            raise ValueError(
                f"fleet.metrics_host: {self.metrics_host} is open to other machines, without a password; use "
                "127.0.0.1, or say fleet.metrics_anyone=true where a firewall decides who may read"
            )
        return self

    @property
    def token_file(self) -> Path:
        return self.token or self.registry.with_name("token")

    @property
    def rejects_file(self) -> Path:
        return self.rejects or self.registry.with_name("rejects.jsonl")

    @property
    def journal_file(self) -> Path:
        return self.journal or self.registry.with_name("journal.jsonl")

    @property
    def log_folder(self) -> Path:
        return self.logs or self.registry.with_name("logs")
