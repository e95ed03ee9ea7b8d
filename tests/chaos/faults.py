"""Which faults strike when: drawn from a seed, so that a run that fails can be had again."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

# Everything that can happen, and how long it lasts at least and at most, in seconds.
KINDS: dict[str, tuple[float, float]] = {
    "kill worker": (0.0, 0.0),
    "freeze worker": (0.5, 4.0),
    "restart worker": (0.0, 0.0),
    "kill coordinator": (0.0, 0.0),
    "freeze coordinator": (0.5, 3.0),
    "restart coordinator": (0.0, 0.0),
    "move coordinator": (0.0, 0.0),
    "fill disk": (0.5, 4.0),
    "damage cache": (0.0, 0.0),
    "slow link": (0.5, 3.0),
    "cut link": (0.5, 4.0),
    "reset link": (0.0, 0.0),
    "join": (0.0, 0.0),
    "leave": (0.0, 0.0),
    "kill trainer": (0.0, 0.0),
    "stall trainer": (0.5, 3.0),
    "switch recipe": (0.0, 0.0),
}
KILLS = ("kill worker", "kill coordinator", "kill trainer")


@dataclass(frozen=True)
class Fault:
    """It strikes once the trainer has done `step` steps. `aim` picks its target among those there are."""

    step: int
    kind: str
    seconds: float
    aim: float  # in [0, 1)


def schedule(seed: int, count: int, *, steps: int, kinds: Sequence[str] = tuple(KINDS)) -> list[Fault]:
    """`count` faults, of every kind in turn, in the first nine tenths of `steps`."""
    draw = random.Random(seed)
    chosen: list[str] = []
    while len(chosen) < count:
        chosen += draw.sample(list(kinds), len(kinds))
    chosen = chosen[:count]
    when = sorted(draw.randrange(1, max(2, steps * 9 // 10)) for _ in chosen)
    return [
        Fault(step, kind, round(draw.uniform(*KINDS[kind]), 2), draw.random())
        for step, kind in zip(when, chosen, strict=True)
    ]
