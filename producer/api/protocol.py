"""What is said between trainers, workers and the coordinator: JSON over Arrow Flight, a deadline on every call.

The coordinator only answers: it knows which units are wanted, leased and held where, never what is in them.

    worker  -> coordinator   action "lease"     Lease     -> Granted    units to encode, those to forget
    worker  -> coordinator   action "register"  Register  -> Registered a unit is ready at the worker's address
    worker  -> coordinator   action "failed"    Failed    -> Answer     a unit could not be made; another tries
    trainer -> coordinator   action "hello"     Hello     -> Welcome    who trains; an older incarnation is refused
    trainer -> coordinator   action "locate"    Locate    -> Located    waits up to wait_s for a unit to be ready
    trainer -> coordinator   action "ack"       Ack       -> Answer     units through a step are no longer needed
    trainer -> coordinator   action "lost"      Lost      -> Answer     a holder did not deliver; lease it again
    trainer -> coordinator   action "goodbye"   Goodbye   -> Answer     training is over; nothing is made for it
    anyone  -> coordinator   action "recipes"   Question  -> Recipes    the recipe journal, and what may still change
    anyone  -> coordinator   action "propose"   Propose   -> Proposed   another recipe, from a step on
    anyone  -> coordinator   action "status"    {}        -> dict       counters for people
    trainer -> worker        do_get(UnitId)               -> one record batch (see unit.py)
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, TypeVar

from producer.api.unit import UnitId

T = TypeVar("T")

# Counters that a worker may send of itself.
NUMBERS = 64
# Units whose place may be asked for along with another's.
MORE = 16

# The header that carries the fleet's token on every call.
TOKEN_HEADER = "authorization"


class ProtocolError(ValueError):
    """A message is not one this side knows."""


@dataclass(frozen=True)
class Lease:
    """A worker asks for up to `room` units; asking is also its heartbeat.

    `holding` (`bytes` of memory in all) and `encoding` are everything it has: a new coordinator relearns from them.
    `full` says that its memory is used up: only units someone waits for are worth more. `incarnation` grows with every
    start of the worker; an older one is refused. `numbers` are its counters (Worker.numbers), or none where they were
    said a moment ago. `plan` is the newest of the journal that it has heard of: all it has is by the journal up to
    there. It cannot make units of step `until` and later yet, unless that is -1. One that says `leaving` takes no more;
    once it has nothing it is forgotten.
    """

    worker: str
    address: str
    plan: str
    encoder: str
    room: int
    full: bool = False
    holding: tuple[UnitId, ...] = ()
    encoding: tuple[UnitId, ...] = ()
    bytes: int = 0
    incarnation: int = 0
    numbers: dict[str, float] = field(default_factory=dict)
    until: int = -1
    leaving: bool = False


@dataclass(frozen=True)
class Granted:
    """Units to encode, those to forget. `narrow` are those of `units` that ended earlier workers: find the sample.

    `entries` are lines of the journal that the worker has not heard of.
    """

    units: tuple[UnitId, ...]
    forget: tuple[UnitId, ...]
    wait_s: float
    narrow: tuple[UnitId, ...] = ()
    entries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Register:
    """A worker holds a unit made by `plan`: its size, its samples and those it had to leave out.

    `then` is what the worker asks right after: in one message, which is most of what a call costs.
    """

    worker: str
    address: str
    plan: str
    unit: UnitId
    bytes: int
    samples: int
    rejected: int
    incarnation: int = 0
    then: Lease | None = None


@dataclass(frozen=True)
class Registered:
    """Whether the unit counts as held there; if not, why, and the worker forgets it. `granted` answers `then`."""

    accepted: bool
    reason: str = ""
    granted: Granted | None = None


@dataclass(frozen=True)
class Failed:
    """A worker could not make a unit: a fault of its surroundings, never a bad sample (those are left out)."""

    worker: str
    unit: UnitId
    reason: str


@dataclass(frozen=True)
class Hello:
    """A trainer starts or resumes at `step`; `incarnation` grows with every start of it.

    `plan` is the one that it trained the step before by, if it knows; `ranks` data-parallel ranks share a step.
    """

    trainer: str
    incarnation: int
    step: int
    plan: str = ""
    ranks: int = 0


@dataclass(frozen=True)
class Welcome:
    """What a trainer must know of the plan: units a step, validation units, and the encoder's fingerprint.

    `plan` is in force at its first step, and is entry `entry` of the journal. `terms` (JSON) are for the journal alone,
    `balance` (producer/balance.py) for the coordinator.
    """

    plan: str
    units: int
    validation_units: int
    encoder: str
    entry: int = 0
    terms: str = ""
    balance: str = ""


@dataclass(frozen=True)
class Locate:
    """`step` is the one being trained: units before it are kept while there is room, in case the trainer goes back.

    `handed` is the last step that this part of the trainer has units of, and `plan` made them. `more` are units that it
    will pull right after, at most MORE: where they are is said along, if they are ready.
    """

    trainer: str
    incarnation: int
    step: int
    unit: UnitId
    wait_s: float
    handed: int = -1
    plan: str = ""
    more: tuple[UnitId, ...] = ()


@dataclass(frozen=True)
class Located:
    """`address` is empty while the unit is not ready; ask again. `reason` says why, for people.

    `plan` makes the unit; it is entry `entry` of the journal. `more` are the addresses of the units that were asked for
    along, empty for those that are not ready or of another plan; none while the unit itself is not ready.
    """

    address: str
    reason: str = ""
    plan: str = ""
    entry: int = 0
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ack:
    """The trainer will never go back to steps up to and including `through`: their units may be forgotten."""

    trainer: str
    incarnation: int
    through: int


@dataclass(frozen=True)
class Lost:
    unit: UnitId
    address: str
    trainer: str = ""
    incarnation: int = -1


@dataclass(frozen=True)
class Goodbye:
    """The trainer will not go on, from no checkpoint."""

    trainer: str
    incarnation: int


@dataclass(frozen=True)
class Question:
    """It needs no words."""


@dataclass(frozen=True)
class Recipes:
    """The journal's lines; `least` is the first step that may still change, relied on in `wait_s`.

    `ranks` is the largest number of data-parallel ranks that share a step now, 0 if none has said so.
    """

    lines: tuple[str, ...]
    least: int
    wait_s: float
    ranks: int = 0


@dataclass(frozen=True)
class Propose:
    """A line to append to the journal (producer/journal.py)."""

    line: str


@dataclass(frozen=True)
class Proposed:
    """Whether the line was appended. If not: why, the `least` step possible, and when to try again if that helps."""

    accepted: bool
    reason: str = ""
    least: int = 0
    wait_s: float = 0.0


@dataclass(frozen=True)
class Answer:
    accepted: bool
    reason: str = ""


def encode(message: object) -> bytes:
    """A message as JSON."""
    return json.dumps(vars(message), default=vars).encode()


def decode(kind: type[T], raw: bytes) -> T:
    """The message of type `kind` in `raw`; ProtocolError names what is missing or unknown."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{kind.__name__}: not JSON ({error})") from None
    return _message(kind, said)


def _message(kind: type[T], said: Any) -> T:
    readers = _readers(kind)  # type: ignore[arg-type]
    if not isinstance(said, dict) or said.keys() - readers.keys():
        unknown = sorted(said.keys() - readers.keys()) if isinstance(said, dict) else said
        raise ProtocolError(f"{kind.__name__}: unknown fields {unknown}; it has {sorted(readers)}")
    values = {}
    for name, value in said.items():
        try:
            values[name] = readers[name](value)
        except ValueError as error:
            raise ProtocolError(f"{kind.__name__}.{name}: {error}") from None
    try:
        return kind(**values)
    except TypeError as error:
        raise ProtocolError(f"{kind.__name__}: {error}") from None


@cache
def _readers(kind: type) -> dict[str, Callable[[Any], Any]]:
    """For each field what makes its value of JSON's; ValueError where that is something else."""
    return {part.name: _BY_TYPE[part.type] for part in fields(kind)}


def _exactly(*wanted: type) -> Callable[[Any], Any]:
    # True is an int to isinstance, and must not be one here.
    def read(value: Any) -> Any:
        if type(value) not in wanted:
            raise ValueError(f"{str(value)[:80]!r} is no {wanted[0].__name__}")
        return value

    return read


def _list(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def read_all(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise ValueError(f"{str(value)[:80]!r} is no list")
        return tuple(map(read, value))

    return read_all


def _unit(value: Any) -> UnitId:
    if type(value) is list and len(value) == 3:
        stream, step, unit = value
        if type(stream) is str and type(step) is int and type(unit) is int:
            return UnitId(stream, step, unit)
    raise ValueError(f"{str(value)[:80]!r} is no unit; one is [stream, step, unit]")


def _numbers(value: Any) -> dict[str, float]:
    if type(value) is not dict or len(value) > NUMBERS or {type(number) for number in value.values()} - {int, float}:
        raise ValueError(f"{str(value)[:80]!r} is not at most {NUMBERS} numbers by name")
    return value


def _perhaps(kind: type) -> Callable[[Any], Any]:
    return lambda value: None if value is None else _message(kind, value)


_BY_TYPE: dict[Any, Callable[[Any], Any]] = {
    str: _exactly(str),
    int: _exactly(int),
    float: _exactly(float, int),
    bool: _exactly(bool),
    UnitId: _unit,
    tuple[UnitId, ...]: _list(_unit),
    tuple[str, ...]: _list(_exactly(str)),
    dict[str, float]: _numbers,
    Lease | None: _perhaps(Lease),
    Granted | None: _perhaps(Granted),
}
