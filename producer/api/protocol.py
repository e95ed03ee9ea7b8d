"""What is said between trainers, workers and the coordinator: JSON over Arrow Flight, a deadline on every call.

The coordinator only answers: it knows which units are wanted, leased and held where, never what is in them.

    worker  -> coordinator   action "lease"     Lease     -> Granted    units to encode, those to forget
    worker  -> coordinator   action "register"  Register  -> Answer     a unit is ready at the worker's address
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
from dataclasses import asdict, dataclass, field, fields
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
    """A worker holds a unit made by `plan`: its size, its samples and those it had to leave out."""

    worker: str
    address: str
    plan: str
    unit: UnitId
    bytes: int
    samples: int
    rejected: int
    incarnation: int = 0


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
    return json.dumps(asdict(message)).encode()  # type: ignore[call-overload]


def decode(kind: type[T], raw: bytes) -> T:
    """The message of type `kind` in `raw`; ProtocolError names what is missing or unknown."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{kind.__name__}: not JSON ({error})") from None
    names = {part.name for part in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(said, dict) or said.keys() - names:
        unknown = sorted(said.keys() - names) if isinstance(said, dict) else said
        raise ProtocolError(f"{kind.__name__}: unknown fields {unknown}; it has {sorted(names)}")
    try:
        message = kind(**{name: _units(name, value) for name, value in said.items()})
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"{kind.__name__}: {error}") from None
    for part in fields(kind):  # type: ignore[arg-type]
        _check(kind.__name__, part.name, part.type, getattr(message, part.name))
    return message


def _units(name: str, value: Any) -> Any:
    if name == "unit":
        return _unit(value)
    if name == "more" and isinstance(value, list) and value and isinstance(value[0], list):
        return tuple(_unit(item) for item in value)
    if name in ("units", "forget", "narrow", "holding", "encoding") and isinstance(value, list):
        return tuple(_unit(item) for item in value)
    if name in ("entries", "lines", "more") and isinstance(value, list):
        if not all(isinstance(item, str) for item in value):
            raise ValueError(f"{name}: a line is no text")
        return tuple(value)
    return value


def _unit(value: Any) -> UnitId:
    unit = UnitId(*value)
    if not isinstance(unit.stream, str) or type(unit.step) is not int or type(unit.unit) is not int:
        raise ValueError(f"{value} is no unit; one is [stream, step, unit]")
    return unit


def _check(kind: str, name: str, wanted: Any, value: object) -> None:
    kinds = {float: (int, float), int: (int,), str: (str,), bool: (bool,), UnitId: (UnitId,), dict[str, float]: (dict,)}
    if isinstance(value, dict) and (len(value) > NUMBERS or {type(number) for number in value.values()} - {int, float}):
        raise ProtocolError(f"{kind}.{name}: {str(value)[:80]!r} is not at most {NUMBERS} numbers by name")
    if type(value) not in kinds.get(wanted, (tuple,)):
        raise ProtocolError(f"{kind}.{name}: {str(value)[:80]!r} is no {getattr(wanted, '__name__', wanted)}")
