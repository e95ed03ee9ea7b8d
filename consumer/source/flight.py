"""Units from the producers, pulled ahead of need by two threads.

Workers and coordinator may be killed, frozen or restarted: that costs waiting, up to `wait_s` for one unit, and nothing
else. Every call has a deadline, and a watchdog cancels a transfer that began and does not end.
"""

import atexit
import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from consumer.source.plans import Plans
from consumer.source.producers import POLL_S, Producers, PullConfig, SourceError
from consumer.source.streams import Arrived
from producer.api.channel import RefusedError, RegistryError, UnreachableError
from producer.api.protocol import Ack, Answer, Hello, ProtocolError, Welcome
from producer.api.unit import UnitId

log = logging.getLogger(__name__)

# Units asked for by one question, where there is room for so many: a question is most of what a coordinator does.
_MORE = 4
_LANES = 2  # units pulled at once: one is asked for and read while the other is checked
_NO_ANSWER = "no answer yet"
_WATCH_S = 0.1
_CLOSE_S = 2.0
_HURRY_S = 1.0


@dataclass(eq=False)
class _Slot:
    """A unit of the schedule that is being pulled, or has arrived and waits to be taken."""

    unit: UnitId
    arrived: Arrived | None = None
    trouble: str = _NO_ANSWER  # why it has not come yet
    error: SourceError | None = None  # why it never will


class FlightSource:
    """What one model-parallel group pulls through: `hello`, then `follow` once, then `next_unit` in that order."""

    def __init__(self, config: PullConfig, trainer: str, incarnation: int) -> None:
        self.config = config
        self._producers = Producers(config, trainer, incarnation)
        self._state = threading.Condition()  # guards what follows
        self._slots: deque[_Slot] = deque()  # in the schedule's order, those being pulled among them
        self._left: Iterator[UnitId] = iter(())  # what is not begun of the schedule, after ...
        self._next: deque[UnitId] = deque()  # ... those which were looked at
        # Units are begun several at once: `_room` more of these. Groups differ in which, so as not to ask all together.
        self._room, self._begun, self._several = 0, 0, min(_MORE, max(1, config.prefetch // 2))
        self._phase = random.randrange(self._several)
        self._broken: Exception | None = None  # what the schedule raised after those
        self._whole = False  # every unit of the schedule came
        self._failed = False
        self._ack = self._acked = -1
        self._acking = threading.Lock()
        self._until = float("inf")  # no wait goes on after this
        self._closed = False
        self._lanes: list[threading.Thread] = []
        self._pulling = 0  # of them, those that go on
        self._watcher = self._run(self._watch)
        atexit.register(self.close)

    def hello(self, step: int, plan: str = "", ranks: int = 0) -> Welcome:
        """Say that training starts at `step`, by which `plan` it trained the one before, and how many `ranks` share it.

        The answer is what is in force now. SourceError after `start_s`, or if the producers' journal has another plan
        for the step before.
        """
        self._producers.step = step
        message = Hello(self._producers.trainer, self._producers.incarnation, step, plan, ranks)
        welcome = self._producers.answered(lambda to: to.ask("hello", message, Welcome))
        self._producers.welcome, self._producers.plans = welcome, Plans(step, welcome.plan, welcome.entry)
        return welcome

    def follow(self, schedule: Callable[[int], Sequence[UnitId]], start: int, stop: int) -> None:
        """Pull the units that `schedule` names for the steps from `start` to before `stop`, ahead of need."""
        self._left = (unit for step in range(start, stop) for unit in schedule(step))
        self._pulling = _LANES
        self._lanes = [self._run(self._pull) for _ in range(_LANES)]

    def next_unit(self, unit: UnitId) -> pa.RecordBatch:
        """The next unit of the schedule, which is `unit`. SourceError if it does not come within `wait_s`."""
        return self.take(unit).batch

    def take(self, unit: UnitId) -> Arrived:
        """As `next_unit`, with its samples; a unit of another stream than the schedule's is pulled now."""
        if unit.stream != "train":
            return self._fetched(unit)
        deadline = time.monotonic() + self.config.wait_s
        with self._state:
            self._producers.step = unit.step
            while not self._slots or self._slots[0].arrived is None:
                if self._slots and self._slots[0].error:
                    raise self._slots[0].error
                left = min(deadline, self._until) - time.monotonic()
                trouble = self._slots[0].trouble if self._slots else _NO_ANSWER
                if left <= 0 and self._until < deadline:
                    raise SourceError(f"{unit} is not waited for, since training is asked to end: {trouble}")
                if left <= 0:
                    raise self._late(unit, trouble)
                self._state.wait(left)
            slot = self._slots.popleft()
            assert slot.unit == unit, f"the schedule has {slot.unit}, asked for {unit}"
            self._state.notify_all()
            return slot.arrived  # type: ignore[return-value]

    def hurry(self) -> None:
        """Wait a moment longer for a unit of the schedule and then no more: training is asked to end."""
        with self._state:
            self._until = time.monotonic() + _HURRY_S
            self._state.notify_all()

    def fetch(self, unit: UnitId) -> pa.RecordBatch:
        """A unit outside the schedule, pulled now. SourceError if it does not come within `wait_s`."""
        return self._fetched(unit).batch

    def _fetched(self, unit: UnitId) -> Arrived:
        deadline = time.monotonic() + self.config.wait_s
        while not self._closed:
            arrived, trouble = self._producers.attempt(unit)
            if arrived is not None:
                return arrived
            if time.monotonic() > deadline:
                raise self._late(unit, trouble)
        raise SourceError(f"{unit}: this source was closed")

    def ack(self, through: int) -> None:
        """Training will not go back to steps through `through`. Says so in the background, as soon as it can."""
        with self._state:
            self._ack = max(self._ack, through)
            pulling = self._pulling > 0
            self._state.notify_all()
        if not pulling:
            self._say_ack()

    def close(self) -> None:
        """End the threads; returns within two seconds, also in the middle of a transfer.

        A training that came to its end says goodbye: nothing more is made for it. Any other may come back.
        """
        atexit.unregister(self.close)
        with self._state:
            ended = self._whole and not self._slots and not self._closed
            self._closed = self._producers.closed = True
            self._slots.clear()
            self._state.notify_all()
        end = time.monotonic() + _CLOSE_S
        for thread in (*self._lanes, self._watcher):
            while thread.is_alive() and time.monotonic() < end:
                self._producers.streams.cancel(0.0)
                thread.join(0.05)
        if ended:
            self._producers.goodbye()
        self._producers.close()

    def _run(self, target: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, name=f"pull{target.__name__}", daemon=True)
        thread.start()
        return thread

    @property
    def _ready(self) -> list[UnitId]:
        """What has arrived of the schedule and was not taken yet, for tests."""
        with self._state:
            return [slot.unit for slot in self._slots if slot.arrived is not None]

    def _pull(self) -> None:
        """One lane: the next unit of the schedule that no other has, until there is none, an error or the end."""
        slot: _Slot | None = None
        try:
            while True:
                self._say_ack()
                with self._state:
                    if self._closed or self._failed:
                        break
                    if not self._room and not self._make_room():
                        self._state.wait(POLL_S if self._ack > self._acked else None)
                        continue
                    self._look_ahead(self._room)
                    if not self._next:
                        break
                    slot = _Slot(self._next.popleft())
                    self._slots.append(slot)
                    self._room, self._begun = self._room - 1, self._begun + 1
                    # Only those for which there is room: what was told to be somewhere counts as given.
                    more = list(self._next)[: self._room]
                self._fill(slot, more)
                slot = None
        except Exception as error:
            self._fail(slot, error)
        with self._state:
            self._pulling -= 1
            last = not (self._pulling or self._closed or self._failed)
        if last:
            # From here on `ack` says it by itself; what came before may not have been said.
            with contextlib.suppress(SourceError):
                self._say_ack()
            self._whole = True

    def _make_room(self) -> bool:
        """Whether the next few units may be begun."""
        wanted = self._several - (self._begun + self._phase) % self._several
        if len(self._slots) + wanted <= self.config.prefetch:
            self._room = wanted
        return self._room > 0

    def _look_ahead(self, units: int) -> None:
        """Have the next `units` of the schedule at hand. What it raises is raised once those before are pulled."""
        try:
            while self._broken is None and len(self._next) < units:
                self._next.append(next(self._left))
        except StopIteration:
            return
        except Exception as error:
            self._broken = error
        if self._broken is not None and not self._next:
            raise self._broken

    def _fail(self, slot: "_Slot | None", error: Exception) -> None:
        """Whatever it is, the one who waits for a unit must hear of it, after the units before it."""
        if not isinstance(error, SourceError):
            log.error("pulling failed", exc_info=error)
            error = SourceError(f"pulling failed: {error!r}")
        with self._state:
            if slot is None:
                slot = _Slot(UnitId("train", -1, -1))
                self._slots.append(slot)
            slot.error, self._failed = error, True
            self._state.notify_all()

    def _fill(self, slot: "_Slot", more: Sequence[UnitId]) -> None:
        """Ask for the slot's unit until it comes or the source is closed."""
        while not self._closed:
            arrived, slot.trouble = self._producers.attempt(slot.unit, more)
            if arrived is None:
                self._say_ack()
                continue
            with self._state:
                slot.arrived = arrived
                self._producers.handed = max(self._producers.handed, slot.unit.step)
                self._state.notify_all()
            return

    def _say_ack(self) -> None:
        """Tell the coordinator how far it may forget; if it is away, a later one says as much."""
        # Who is saying one looks again afterwards.
        while (through := self._ack) > self._acked and self._acking.acquire(blocking=False):
            try:
                self._producers.ask("ack", Ack(self._producers.trainer, self._producers.incarnation, through), Answer)
                self._acked = max(through, self._acked)
            except (UnreachableError, RegistryError, ProtocolError) as error:
                log.info("ack through %d not heard: %s", through, error)
                return
            except RefusedError as error:
                raise SourceError(str(error)) from None
            finally:
                self._acking.release()

    def _watch(self) -> None:
        while not self._closed:
            self._producers.streams.cancel(self.config.stall_s)
            with self._state:
                self._state.wait(_WATCH_S)

    def _late(self, unit: UnitId, trouble: str) -> SourceError:
        return SourceError(
            f"{unit} did not come within {self.config.wait_s:g} s from {self._producers.where}: {trouble}; "
            "see the producers' logs, or raise pull.wait_s"
        )
