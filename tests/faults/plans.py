"""Which faults strike when: drawn from a seed, so that a run that fails can be had again."""

import random
from collections.abc import Sequence

from tests.faults.planted import Fault

# What every rank does, and what the first alone does for all.
EVERYWHERE = (
    "between",  # inside the optimizer's step
    "write",
    "data",
    "forward",
    "copy",
    "backward",
    "optimizer",
    "reduce",
    "validation",
    "average",
    "start",
)
FIRST = ("publish", "clear")


def kills(seed: int, count: int, *, ranks: int, steps: int) -> list[Fault]:
    """`count` deaths of random ranks: inside the optimizer's step, in a save, at other moments in turn, each in a start
    of its own and at a random step not before the last one's, up to 10 ms into the moment.
    """
    draw = random.Random(seed)
    moments: list[str] = []
    while len(moments) < count:
        others = [*EVERYWHERE[2:], *FIRST]
        moments += [*EVERYWHERE[:2], *draw.sample(others, len(others))]
    moments = moments[:count]
    draw.shuffle(moments)
    when = sorted(draw.randrange(steps) for _ in moments)
    return [
        Fault(
            "SIGKILL",
            moment,
            step=-1 if moment == "start" else step,
            rank=0 if moment in FIRST else draw.randrange(ranks),
            start=start,
            delay_s=draw.choice((0.0, draw.uniform(0.0, 0.01))),
        )
        for start, (moment, step) in enumerate(zip(moments, when, strict=True))
    ]


def told(faults: Sequence[Fault]) -> str:
    """For people."""
    return ", ".join(f"{f.act} rank {f.rank} step {f.step} {f.moment}+{1e3 * f.delay_s:.1f}ms" for f in faults)
