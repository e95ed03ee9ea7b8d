"""Where synthesis runs."""

from pydantic import BaseModel, Field


class WorkersConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    # Of Ray: local starts its own, auto or host:port joins a cluster; empty: all in this process.
    address: str = ""
    cpus: float = Field(default=1.0, gt=0)  # cores that the making of a tar asks for
    object_store_mb: int = Field(default=80, ge=80)  # of a local Ray; only file names travel through it
    stall_s: float = Field(default=900.0, gt=0)  # with no picture made for so long, the run ends
