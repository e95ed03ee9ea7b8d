"""What one rank finds around it before the first step, as it travels to rank 0."""

import json
from dataclasses import asdict, dataclass, field

from parallel.probe import Reach


@dataclass(frozen=True)
class Device:
    """What a rank computes on. `id` is empty where ranks share it by design, as on a CPU."""

    kind: str
    capability: str
    count: int  # on this host
    id: str
    free_bytes: int


@dataclass(frozen=True)
class Folder:
    """A folder that the run writes to, as one rank sees it."""

    path: str
    free_bytes: int
    disk: int  # number of the file system on this host
    probe: str  # name of a file this rank left there until all have looked
    error: str = ""


@dataclass(frozen=True)
class Note:
    """What one rank found. `settings` are JSON values by path; `checks` are of this rank alone: (passed, what)."""

    rank: int
    host: str
    code: str  # a hash of the sources
    settings: dict[str, str]
    versions: dict[str, str]
    lacking: list[str]
    device: Device
    folders: dict[str, Folder] = field(default_factory=dict)
    groups: list[Reach] = field(default_factory=list)
    checks: dict[str, tuple[bool, str]] = field(default_factory=dict)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def of(cls, raw: bytes) -> "Note":
        """The note in `raw`; TypeError, KeyError or ValueError if other code wrote it."""
        said = json.loads(raw)
        said["device"] = Device(**said["device"])
        said["folders"] = {name: Folder(**value) for name, value in said["folders"].items()}
        said["groups"] = [Reach(**value | {"ranks": tuple(value["ranks"])}) for value in said["groups"]]
        said["checks"] = {name: (bool(passed), str(what)) for name, (passed, what) in said["checks"].items()}
        return cls(**said)
