"""What a large training's groups and workers say to their coordinator, sent by a few threads when each word is due.

Groups and workers are only names: nothing is encoded or trained. Each is a generator that says what it asks next and
when, and is told the answer. What a thread sends late is the load's fault, not the
coordinator's, so that is measured apart from the answers.
"""

import heapq
import random
import threading
import time
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

from producer.api.channel import Channel, UnreachableError
from producer.api.protocol import Ack, Answer, Granted, Lease, Locate, Located, Register, Registered
from producer.api.unit import UnitId

TOKEN = "a token as long as a real one is"
SIZE = 30 << 20  # bytes that a unit is said to have
CALL_S = 30.0
PAUSE_S = 0.2  # before the next try after nobody answered
POLL_S = 1.0  # that a trainer's question is held, as in consumer/source/producers.py
MORE = 4  # units of one question, as in consumer/source/flight.py
QUEUE = 2  # units that a worker leases at once, as in producer/worker.py
NUMBERS_S = 2.0  # between two times that a worker sends its counters
NUMBERS = {f"stage{number}_seconds": 1234.5678 for number in range(20)}


@dataclass(frozen=True)
class Case:
    """A training of `groups`, each with `units` a step of `step_s` seconds, and the workers that feed it."""

    groups: int = 1024
    units: int = 1
    step_s: float = 2.0
    prefetch: int = 8
    spread_s: float = 2.0  # over how much of a step the groups come to their first unit
    ahead: int = 12  # steps in the horizon
    workers: int = 256
    speed: float = 1.5  # of all workers together, over what is trained
    ack_steps: int = 5
    senders: int = 6  # threads of the load
    holders: int = 16  # more of them, for questions that the coordinator holds
    warm_s: float = 20.0
    run_s: float = 30.0

    @property
    def a_step(self) -> int:
        return self.groups * self.units


class Call(NamedTuple):
    """`message` is to be sent at `due` (time.monotonic, which all processes of a machine share)."""

    due: float
    kind: str
    message: object
    answer: type[Any]


class Said(NamedTuple):
    """The answer that came at `at`; None where nobody answered."""

    answer: Any
    at: float


Caller = Generator[Call, Said, None]


class Schedule:
    """Calls by when they are due, for the threads that send them; none is given out from `end` on."""

    def __init__(self, end: float) -> None:
        self._end = end
        self._calls: list[tuple[float, int, Call]] = []
        self._state = threading.Condition()  # guards the calls; told of one that is due before all others
        self._looking = threading.Lock()  # one thread waits for what is due, the others for that one

    def put(self, number: int, call: Call) -> None:
        """`call` of the caller `number`."""
        with self._state:
            heapq.heappush(self._calls, (call.due, number, call))
            if self._calls[0][1] == number:
                self._state.notify()

    def take(self) -> tuple[int, Call] | None:
        """What is due next, once it is; None at the end."""
        with self._looking, self._state:
            while (now := time.monotonic()) < self._end:
                due = self._calls[0][0] if self._calls else self._end
                if due <= now:
                    return heapq.heappop(self._calls)[1:]
                self._state.wait(min(due, self._end) - now)
        return None


class Load:
    """All groups and workers, from `begin` on; what is measured begins `warm_s` later and takes `run_s`."""

    def __init__(self, case: Case, address: str, begin: float) -> None:
        self.case, self.address, self.begin = case, address, begin
        self.warm = begin + case.warm_s
        self.end = self.warm + case.run_s
        # By kind of message, in seconds: from sent to answered, from due to sent, from due to answered.
        self.answers: dict[str, list[float]] = defaultdict(list)
        self.lateness: dict[str, list[float]] = defaultdict(list)
        self.whole: dict[str, list[float]] = defaultdict(list)
        self.counts = dict.fromkeys(("held", "not_ready", "late_units", "errors", "made", "trained", "along"), 0)
        callers = [*(self.group(n) for n in range(case.groups)), *(self.worker(n) for n in range(case.workers))]
        self._callers = callers
        self._ready: set[UnitId] = set()
        self._numbers_due: dict[str, float] = {}  # by worker
        # Questions that will be held, for units not made yet, have threads of their own, and no times.
        self._prompt, self._held = Schedule(self.end), Schedule(self.end)
        for number, caller in enumerate(callers):
            self._put(number, next(caller))

    def run(self) -> dict[str, object]:
        """All until the end."""
        which = [self._prompt] * self.case.senders + [self._held] * self.case.holders
        threads = [
            threading.Thread(target=self._send, args=(schedule, Channel(self.address, TOKEN))) for schedule in which
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"answers": self.answers, "lateness": self.lateness, "whole": self.whole, "counts": self.counts}

    def _put(self, number: int, call: Call) -> None:
        said = call.message
        held = isinstance(said, Locate) and said.wait_s > 0 and said.unit not in self._ready
        (self._held if held else self._prompt).put(number, call)

    def _send(self, schedule: Schedule, channel: Channel) -> None:
        while (following := schedule.take()) is not None:
            number, call = following
            sent = time.monotonic()
            try:
                answer = channel.ask(call.kind, call.message, call.answer, CALL_S)
            except UnreachableError:
                answer = None
            at = time.monotonic()
            if isinstance(call.message, Register) and answer is not None:
                self._ready.add(call.message.unit)
            if call.due >= self.warm:
                self._note(call, sent, at, answer, schedule is self._held)
            self._put(number, self._callers[number].send(Said(answer, at)))

    def _note(self, call: Call, sent: float, at: float, answer: object, held: bool) -> None:
        self.counts["errors"] += answer is None
        self.counts["held"] += held
        ready = not isinstance(answer, Located) or bool(answer.address)
        self.counts["not_ready"] += not ready
        if answer is not None and ready and not held:
            self.answers[call.kind].append(at - sent)
            self.lateness[call.kind].append(sent - call.due)
            self.whole[call.kind].append(at - call.due)

    def group(self, number: int) -> Caller:
        """What a model-parallel group asks (consumer/source/flight.py): units for the places that steps make free.

        One question asks for up to MORE of them, where half of the places are so many; groups differ in which. Of its
        two lanes one is enough here: the other takes what was told along.
        """
        case, draw = self.case, random.Random(number)
        first = self.begin + 0.7 * case.warm_s + draw.random() * case.spread_s
        period, due = case.step_s / case.units, self.begin + draw.random()
        pulled, acked, several = 0, 0, min(MORE, max(1, case.prefetch // 2))
        told: set[int] = set()
        while True:
            wanted = several - (pulled + number) % several
            due = max(due, first + (pulled + wanted - 1 - case.prefetch) * period)
            if (saved := first + (acked + 1) * case.ack_steps * case.step_s) <= due:
                acked += 1
                yield Call(saved, "ack", Ack("t", 1, acked * case.ack_steps - 1), Answer)
                continue
            step = max(0, int((due - first) / case.step_s + 1e-6)) if due >= first else 0
            units = [self._unit(number, pulled + place) for place in range(wanted)]
            handed = (pulled - 1) // case.units if pulled else -1
            # Before the first step questions are not held: there are not threads for all of them.
            wait_s = POLL_S if due >= first else 0.0
            message = Locate("t", 1, step, units[0], wait_s, handed, "p" if pulled else "", tuple(units[1:]))
            found, due = yield Call(due, "locate", message, Located)
            if found is None or not found.address:
                due += POLL_S - wait_s if found else PAUSE_S
                continue
            told |= {pulled + place for place, there in enumerate(found.more, 1) if there}
            self.counts["late_units"] += due > max(self.warm, first + pulled * period)
            before, pulled = pulled, pulled + 1
            while pulled in told:
                told.remove(pulled)
                pulled += 1
                self.counts["along"] += 1
            self.counts["trained"] += (pulled - before) * (due >= self.warm)

    def _unit(self, group: int, place: int) -> UnitId:
        units = self.case.units
        return UnitId("train", place // units, group * units + place % units)

    def worker(self, number: int) -> Caller:
        """What a worker says (producer/worker.py): registers what it made and asks along, or at a heartbeat alone.

        At first it holds its share of the horizon: producers are ahead, and the coordinator hears of it from them.
        """
        case, draw = self.case, random.Random(-1 - number)
        name, address = f"w{number}", f"10.{number >> 8}.{number & 255}.1:4000 raw:4001"
        make_s = case.workers * case.step_s / (case.a_step * case.speed)
        made = [
            self._unit(n, k) for n in range(number, case.groups, case.workers) for k in range(case.units * case.ahead)
        ]
        holds, queue = set(made), list[UnitId]()
        self._ready |= holds
        due = self.begin + draw.random()
        done = 0.0
        while True:
            granted, due = yield Call(due, "lease", self._lease(name, address, holds, queue, due), Granted)
            while granted is not None:
                holds -= set(granted.forget)
                if not queue:
                    done = due + make_s * draw.uniform(0.7, 1.3)
                queue = [unit for unit in queue if unit not in granted.forget] + list(granted.units)
                if not queue or done > due + granted.wait_s:
                    due += granted.wait_s
                    break
                unit, due = queue.pop(0), max(due, done)
                holds.add(unit)
                then = self._lease(name, address, holds, queue, due)
                register = Register(name, address, "p", unit, SIZE, 16, 0, 1, then)
                answer, due = yield Call(due, "register", register, Registered)
                self.counts["made"] += due >= self.warm
                if answer and not answer.accepted:
                    holds.discard(unit)
                done = max(done, due - make_s) + make_s * draw.uniform(0.7, 1.3)
                granted = answer and answer.granted
            if granted is None:
                due += PAUSE_S

    def _lease(self, name: str, address: str, holds: set[UnitId], queue: list[UnitId], due: float) -> Lease:
        numbers = NUMBERS if due >= self._numbers_due.get(name, 0.0) else {}
        if numbers:
            self._numbers_due[name] = due + NUMBERS_S
        room, mine = QUEUE - len(queue), {"holding": tuple(holds), "encoding": tuple(queue)}
        return Lease(name, address, "p", "e", room, incarnation=1, numbers=numbers, bytes=SIZE * len(holds), **mine)
