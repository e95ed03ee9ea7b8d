"""The coordinator's rules, without sockets, threads or a clock of its own.

It knows which units the trainers will want next, who is encoding them and who holds them. All of it is soft: a new
coordinator learns it from what workers and trainers say next. Training units that do not fit the horizon (bytes) are
not begun, units no trainer needs are forgotten, and a worker or trainer that falls silent no longer counts.

Every public method is one message of producer/api/protocol.py and takes the time (seconds, any origin, never back).
"""

from collections import deque
from dataclasses import dataclass, replace
from itertools import takewhile

from producer.api.channel import RefusedError
from producer.api.protocol import (
    MORE,
    Ack,
    Answer,
    Failed,
    Goodbye,
    Granted,
    Hello,
    Lease,
    Locate,
    Located,
    Lost,
    Propose,
    Proposed,
    Recipes,
    Register,
    Welcome,
)
from producer.api.unit import UnitId
from producer.demand import Demand, Trainer
from producer.journal import Journal, first_line, texts
from producer.ledger import Ledger, Worker
from producer.switches import Switches, heard
from producer.trouble import Troubles

_RATE_S = 30.0  # images/s are counted over this long
_DOUBT = 2.5  # heartbeats that a worker which did not deliver may be silent
_DEATHS = 2  # of workers over a unit, until it is made sample by sample


@dataclass(frozen=True)
class Limits:
    """`horizon_bytes`: of training units made or being made ahead. The rest: seconds of silence that are too long."""

    horizon_bytes: int
    heartbeat_s: float = 1.0
    lease_s: float = 10.0  # a worker's
    late_s: float = 300.0  # on one unit; another worker then gets it too
    trainer_s: float = 3600.0  # a trainer's


class Coordinator:
    """The rules for one plan, `offer`, and what follows it in the journal.

    RefusedError: the caller is wrong and asking again will not help.
    """

    def __init__(self, offer: Welcome, limits: Limits, now: float, journal: Journal | None = None) -> None:
        self.offer, self.limits = offer, limits
        self.switches = Switches(journal or Journal(None, first_line(offer)), now)
        self.demand = Demand(offer)
        self.ledger = Ledger(self.demand.reopen)
        self.counts = dict.fromkeys(("registered", "samples", "rejected", "refused", "lost", "failed", "late"), 0)
        self._troubles = Troubles()
        self._recent: deque[tuple[float, int]] = deque()  # when, samples registered
        self._start = self._swept = now

    # What workers say.

    def lease(self, said: Lease, now: float) -> Granted:
        """Take note of all that a worker has, name what it may forget, and give it units to encode."""
        self._sweep(now)
        self._check_encoder(said.worker, said.encoder)
        unknown = self.switches.unknown(said.worker, said.plan)
        worker = self.ledger.meet(said.worker, said.address, now, said.incarnation)
        worker.numbers = said.numbers or worker.numbers
        valid, until = heard(said, unknown)
        self._relearn(valid, worker, now)
        forget = [unit for unit in said.holding if unit not in worker.holds]
        forget += [unit for unit in said.encoding if unit not in valid.encoding or self._in_vain(unit, said.worker)]
        units = self._choose(said, until, now) if said.room > 0 and not said.leaving else []
        for unit in units:
            self.ledger.lease(unit, said.worker, now)
        if said.leaving and not said.holding and not said.encoding:
            self.ledger.part(said.worker)
        narrow = tuple(unit for unit in units if self.ledger.deaths.get(unit, 0) >= _DEATHS)
        return Granted(tuple(units), tuple(forget), self.limits.heartbeat_s, narrow, texts(unknown))

    def register(self, said: Register, now: float) -> Answer:
        """A worker holds a unit. The first to say so wins; another is told to forget its own."""
        self._sweep(now)
        self.demand.check(said.unit)
        self.switches.unknown(said.worker, said.plan)
        worker = self.ledger.meet(said.worker, said.address, now, said.incarnation)
        worker.encodes.pop(said.unit, None)
        line = self.switches.line(said.unit)
        if said.plan != line.id:
            self.ledger.unlease(said.unit, said.worker)
            self.counts["refused"] += 1
            return Answer(False, f"{said.unit} is made by plan {line.id} from step {line.from_step} on")
        holder = self.ledger.held.get(said.unit)
        if holder and holder.worker == said.worker:
            return Answer(True)
        if holder or not self.demand.wanted(said.unit):
            self.ledger.unlease(said.unit, said.worker)
            self.counts["refused"] += 1
            return Answer(False, f"{said.unit} is {f'held by {holder.worker}' if holder else 'not wanted any longer'}")
        self._hold(said.unit, said.worker, said.bytes)
        self.counts["registered"] += 1
        self.counts["samples"] += said.samples
        self.counts["rejected"] += said.rejected
        self._recent.append((now, said.samples))
        return Answer(True)

    def failed(self, said: Failed, now: float) -> Answer:
        """A worker could not make a unit: others go first, and each failure makes the pause longer."""
        self.demand.check(said.unit)
        self.counts["failed"] += 1
        if said.worker in self.ledger.workers:
            self.ledger.workers[said.worker].encodes.pop(said.unit, None)
        self.ledger.unlease(said.unit, said.worker)
        if said.unit in self.ledger.held:
            return Answer(True)  # another has made it
        self._troubles.failed(said.unit, said.worker, said.reason, now)
        return Answer(True)

    # What trainers say.

    def hello(self, said: Hello, now: float) -> Welcome:
        """A trainer is at `step`: its units are wanted from there on, also those it once had."""
        self._sweep(now)
        self._known(said, now)
        if said.step < 0:
            raise RefusedError(f"trainer {said.trainer}: step {said.step} is negative")
        self.switches.agree(said.trainer, said.step - 1, said.plan)
        self.switches.at(said.trainer, said.incarnation, said.step - 1)
        self.demand.place(said.trainer, said.incarnation, said.step, now)
        self.demand.trainers[said.trainer].ranks = said.ranks
        self._prune()
        line = self.switches.journal.at(said.step)
        return replace(self.offer, plan=line.id, entry=line.number, terms="", balance="")

    def locate(self, said: Locate, now: float) -> Located:
        """Where a unit is. One that is nowhere is made before all others from now on."""
        self._sweep(now)
        for unit in (said.unit, *said.more[:MORE]):
            self.demand.check(unit)
        trainer = self._known(said, now)
        self.switches.agree(said.trainer, said.handed, said.plan)
        if trainer is None:
            self.switches.at(said.trainer, said.incarnation, max(said.handed, said.step - 1))
            self.demand.place(said.trainer, said.incarnation, said.step, now)
        elif said.step > trainer.step:
            trainer.step = said.step
        line = self.switches.line(said.unit)
        if address := self.ledger.where(said.unit):
            more = tuple(self.ledger.where(u) if self.switches.line(u) == line else "" for u in said.more[:MORE])
            for unit in (said.unit, *(unit for unit, there in zip(said.more, more, strict=False) if there)):
                self.demand.asked.pop(unit, None)
                if unit.stream == "train":
                    self.switches.at(said.trainer, said.incarnation, unit.step)
            return Located(address, "", line.id, line.number, more)
        self.demand.ask(said.unit, now)
        return Located("", self._why(said.unit), line.id, line.number)

    def ack(self, said: Ack, now: float) -> Answer:
        """A trainer will not go back to its steps through `through`."""
        self._sweep(now)
        trainer = self._known(said, now)
        if trainer is None:
            self.switches.at(said.trainer, said.incarnation, said.through)
            self.demand.place(said.trainer, said.incarnation, said.through + 1, now)
        elif said.through > trainer.acked:
            trainer.acked, trainer.step = said.through, max(trainer.step, said.through + 1)
        else:
            return Answer(True)
        self._prune()
        return Answer(True)

    def lost(self, said: Lost, now: float) -> Answer:
        """A holder did not deliver: it forgets the unit, and another worker makes it, at once."""
        self._sweep(now)
        self.demand.check(said.unit)
        if said.trainer:
            self._known(said, now)
        held = self.ledger.held.get(said.unit)
        if held is None or self.ledger.workers[held.worker].address != said.address:
            return Answer(False, f"{said.unit} is not held at {said.address}")
        self.counts["lost"] += 1
        self.ledger.workers[held.worker].doubted = True
        self.ledger.drop(said.unit)
        self.demand.ask(said.unit, now)
        self._troubles.lost(said.unit, held.worker, now + self.limits.lease_s)
        return Answer(True)

    def goodbye(self, said: Goodbye, now: float) -> Answer:
        """A trainer is through: nothing is kept or made for it any longer."""
        self._sweep(now)
        self._known(said, now)
        self.demand.leave(said.trainer, self.switches.others(said.trainer))
        self.switches.gone(said.trainer)
        self._prune()
        return Answer(True)

    # What whoever changes the recipe says.

    def recipes(self, now: float) -> Recipes:
        """The journal, and from which step on it may be added to."""
        ranks = max((trainer.ranks for trainer in self.demand.trainers.values()), default=0)
        return Recipes(texts(self.switches.journal.lines), self.switches.least, self.switches.unsure_s(now), ranks)

    def propose(self, said: Propose, now: float) -> Proposed:
        """Add to the journal. Units that were made ahead by what was in force before are made again."""
        answer = self.switches.propose(said.line, now)
        if answer.accepted:
            step = self.switches.journal.last.from_step
            for unit in [unit for unit in self.ledger.order if unit.step >= step]:
                self.ledger.drop(unit)
            for unit, worker in [(u, w) for u, w in self.ledger.leased.items() if u.stream == "train"]:
                if unit.step >= step:
                    self.ledger.unlease(unit, worker)
        return answer

    def status(self, now: float) -> dict[str, object]:
        """Counters for people."""
        self._sweep(now)
        held, behind = self.ledger.held, self.demand.behind(self.ledger.order)
        samples = sum(count for _, count in self._recent)
        return {
            "plan": self.switches.journal.last.id,
            "entry": self.switches.journal.last.number,
            "from_step": self.switches.journal.last.from_step,
            "encoder": self.offer.encoder,
            "units_a_step": self.offer.units,
            "units_ahead": len(self.ledger.order) - behind,
            "units_behind": behind,
            "units_kept": len(held) - len(self.ledger.order),
            "steps_ahead": self.demand.steps_ahead(self.ledger.order),
            "units_to_keep": len(self.demand.kept),
            "leases": len(self.ledger.leased),
            "waiting": len(self.demand.asked),
            "bytes_ahead": self.ledger.bytes,
            "horizon_bytes": self.limits.horizon_bytes,
            "images_per_s": round(samples / max(1e-3, min(_RATE_S, now - self._start)), 3),
            "workers": {name: round(now - worker.seen, 3) for name, worker in self.ledger.workers.items()},
            "trainers": {name: trainer.step for name, trainer in self.demand.trainers.items()},
            "troubles": {str(unit): trouble.reason for unit, trouble in self._troubles.items()}
            | {str(unit): f"{count} workers ended while encoding it" for unit, count in self.ledger.deaths.items()},
            "numbers": {name: worker.numbers for name, worker in self.ledger.workers.items()},
            "silenced": self.ledger.silenced,
            **self.counts,
        }

    # What follows from it.

    def _choose(self, said: Lease, until: int | None, now: float) -> list[UnitId]:
        """Up to `room` free units of steps before `until`.

        The horizon holds back only what nobody waits for and is after the next step.
        """
        chosen: list[UnitId] = []

        def free(unit: UnitId) -> bool:
            can = until is None or unit.step < until or unit.stream != "train"
            return can and not self.ledger.busy(unit) and unit not in chosen and self._may(said.worker, unit, now)

        for unit in self.demand.candidates(self.ledger.busy, free, until):
            if unit in chosen:
                continue  # two trainers are at the same place of the plan
            distance = self.demand.distance(unit) or 0
            waited = unit in self.demand.asked or unit.stream != "train"
            if self._starting(now) and not waited:
                break
            must = waited or distance < 2 * self.offer.units
            # What must be made takes the place of what was trained, or is needed later.
            if unit.stream == "train" and not self._fits(distance, len(chosen)) and not must:
                break
            if said.full and not self._trade(said.worker, distance) and not must:
                break
            chosen.append(unit)
            if len(chosen) >= said.room:
                break
        return chosen

    def _fits(self, distance: int, more: int) -> bool:
        """Whether the horizon has room for a unit needed in `distance`, and `more` before it.

        Units of steps already trained make room first, then units needed later.
        """
        ledger = self.ledger
        while not ledger.mean or ledger.ahead + ledger.mean * (more + 1) > self.limits.horizon_bytes:
            least = self.demand.least(ledger.order)
            needed = self.demand.distance(least) if least else 0
            if least is None or (needed is not None and needed <= distance):
                return False
            ledger.drop(least)
        return True

    def _trade(self, worker: str, distance: int) -> bool:
        """Whether a full worker could let go of a unit for one that is needed in `distance`, as in `_fits`."""
        held = sorted(unit for unit in self.ledger.workers[worker].holds if unit.stream == "train")
        least = self.demand.least(held)
        needed = self.demand.distance(least) if least else 0
        if least is None or (needed is not None and needed <= distance):
            return False
        self.ledger.drop(least)
        return True

    def _starting(self, now: float) -> bool:
        """Whether those who knew an earlier coordinator may not have spoken yet; one that has left has spoken."""
        return not self.demand.heard and now - self._start < self.limits.lease_s

    def _may(self, worker: str, unit: UnitId, now: float) -> bool:
        """Whether `worker` may try `unit`: others go first after it failed, or lost it and there are others."""
        return self._troubles.may(unit, worker, now, alone=len(self.ledger.workers) == 1)

    def _relearn(self, said: Lease, worker: Worker, now: float) -> None:
        """Make what is known of a worker equal to what it says."""
        holding, encoding = set(said.holding), set(said.encoding)
        for unit in worker.holds - holding:
            self.ledger.drop(unit)
        worker.discards &= holding
        for unit in holding - worker.holds - worker.discards:
            if unit not in self.ledger.held and self.demand.useful(unit):
                self._hold(unit, said.worker, said.bytes // len(holding))
        for unit in worker.encodes.keys() - encoding:
            del worker.encodes[unit]
            self.ledger.unlease(unit, said.worker)
        for unit in encoding - worker.encodes.keys() - worker.holds:
            if not self.ledger.busy(unit) and self.demand.wanted(unit):
                self.ledger.lease(unit, said.worker, now)
        if self._starting(now):
            self.demand.begin(self.ledger.order[0].step if self.ledger.order else 0)

    def _in_vain(self, unit: UnitId, worker: str) -> bool:
        holder = self.ledger.held.get(unit)
        return holder.worker != worker if holder else not self.demand.wanted(unit)

    def _hold(self, unit: UnitId, worker: str, size: int) -> None:
        self.ledger.hold(unit, worker, size)
        self.demand.asked.pop(unit, None)
        self._troubles.pop(unit, None)

    def _prune(self) -> None:
        """Forget what no trainer needs any longer."""
        # Of what is held those that were trained come first.
        acked = self.demand.acked
        past = takewhile(lambda unit: unit.step <= acked, self.ledger.order)
        for unit in [unit for unit in past if not self.demand.useful(unit)]:
            self.ledger.drop(unit)
        for unit, worker in [(u, w) for u, w in self.ledger.leased.items() if not self.demand.wanted(u)]:
            self.ledger.unlease(unit, worker)
        for known in (self._troubles, self.ledger.deaths):
            for unit in [unit for unit in known if not self.demand.wanted(unit)]:
                del known[unit]

    def _known(self, said: Hello | Locate | Ack | Lost | Goodbye, now: float) -> Trainer | None:
        """The trainer that speaks, None if this start of it has not spoken yet; an older start is refused."""
        self.switches.admit(said.trainer, said.incarnation)
        return self.demand.known(said.trainer, said.incarnation, now)

    def _check_encoder(self, name: str, encoder: str) -> None:
        if encoder != self.offer.encoder:
            ours = self.offer.encoder
            raise RefusedError(f"{name}: its encoder is {encoder}, the coordinator's is {ours}; start it anew")

    def _why(self, unit: UnitId) -> str:
        if unit in self.ledger.leased:
            return f"{self.ledger.leased[unit]} is encoding it"
        if unit in self._troubles:
            return self._troubles[unit].reason
        return "no worker is free" if self.ledger.workers else "no worker has reported yet"

    def _gone(self, worker: Worker, now: float) -> bool:
        """Whether it has been silent for too long; not long where a trainer did not get its unit either."""
        silence = now - worker.seen
        return silence > self.limits.lease_s or (worker.doubted and silence > _DOUBT * self.limits.heartbeat_s)

    def _sweep(self, now: float) -> None:
        """See who has fallen silent; at most a few times a lease, since it looks at everything."""
        if now - self._swept < min(0.25, self.limits.lease_s / 8):
            return
        self._swept = now
        ledger = self.ledger
        for name in [name for name, worker in ledger.workers.items() if self._gone(worker, now)]:
            ledger.silence(name)
        for name, worker in ledger.workers.items():
            for unit in [unit for unit, since in worker.encodes.items() if now - since > self.limits.late_s]:
                self.counts["late"] += ledger.leased.get(unit) == name
                ledger.unlease(unit, name)
        if gone := self.demand.sweep(now, self.limits.trainer_s):
            for trainer in gone:
                self.switches.gone(trainer)
            self._prune()
        while self._recent and now - self._recent[0][0] > _RATE_S:
            self._recent.popleft()
