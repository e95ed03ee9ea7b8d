"""One compiled line of the recipe journal: which rows make which units from its first step on.

A group is a stream (caption split, task, class) in a bucket. A slot of the plan picks its stream by weight, then the
group inside it by size. A group's samples are an endless sequence: rows not yet seen in the open pass, then pass after
pass, each shuffled by a keyed permutation. Stretches of the sequence are dealt by text length to units of equal cost.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from producer.api.bucket import MULTIPLE, Bucket
from producer.classes import Classes
from producer.cost import CostModel
from producer.interleave import PERIOD, Interleave
from producer.keyed import key
from producer.permutation import permute
from producer.recipe import T2I, RecipeConfig, RecipeError, Selection

# Samples sorted by text length together: at least this many, and at least so many units. More make units more equal and
# a single step dearer to compute.
_STRETCH, _LANES = 256, 16

# Streams of a recipe with classes: each has a table of half a megabyte.
_MAX_STREAMS = 512


class Group(NamedTuple):
    """Samples that may share a unit. `samples` is a unit's size, which a group with fewer rows fills by repeating."""

    split: str
    task: str
    bucket: Bucket
    samples: int
    kind: tuple[str, ...] = ()  # its class, as producer.classes names it


class Dealt(NamedTuple):
    """A step's units by falling cost; unit u holds rows[starts[u] : starts[u + 1]]."""

    groups: np.ndarray  # int64 [units]
    costs: np.ndarray  # int64 [units]
    starts: np.ndarray  # int64 [units + 1]
    rows: np.ndarray  # int64: row numbers of the index


class Stretches(NamedTuple):
    """Samples of several stretches, longest text first in each."""

    which: np.ndarray  # the stretch, as it was asked for
    lane: np.ndarray  # the unit of the stretch
    rows: np.ndarray
    lap: np.ndarray  # the pass of the group
    tokens: np.ndarray


@dataclass(frozen=True, eq=False)
class Entry:
    """Units of every step from `first_step`, each computed at once."""

    first_step: int
    units: int  # a step
    seed: int
    number: int  # of the entry in its journal: another one shuffles anew
    groups: tuple[Group, ...]  # those of a stream side by side
    cost: CostModel
    streams: Interleave
    inside: tuple[Interleave, ...]  # by stream: its groups
    rows: np.ndarray  # rows of all groups, one after another; in each, first those seen in the open pass
    starts: np.ndarray  # [groups + 1] where a group's rows start, and the end
    old: np.ndarray  # [groups] how many are seen in the open pass
    tokens: np.ndarray  # int32 [splits, rows of the index]: all but the target's, references among them
    split: np.ndarray  # [groups] the group's row of `tokens`
    lanes: np.ndarray  # [groups] units that are dealt together
    turn: np.ndarray  # [groups] rows shuffled together, see _sequence

    @cached_property
    def sizes(self) -> np.ndarray:
        """Rows of each group."""
        return np.diff(self.starts)

    @cached_property
    def samples(self) -> np.ndarray:
        """Samples in a unit of each group."""
        return np.asarray([group.samples for group in self.groups])

    @cached_property
    def image_tokens(self) -> np.ndarray:
        """Image tokens of a sample of each group."""
        return np.asarray([group.bucket.tokens for group in self.groups])

    def deal(self, step: int) -> Dealt:
        """The units of `step`, whatever was asked for before."""
        assert step >= self.first_step
        group, ordinal = self._slots((step - self.first_step) * self.units + np.arange(self.units))
        lanes = self.lanes[group]
        asked, mine = np.unique((group << 40) + ordinal // lanes, return_inverse=True)
        found = self._stretches(asked >> 40, asked & ((1 << 40) - 1))
        slot = np.full((len(asked), int(lanes.max())), -1)
        slot[mine, ordinal % lanes] = np.arange(self.units)
        owner = slot[found.which, found.lane]
        wanted = np.flatnonzero(owner >= 0)
        wanted = wanted[np.argsort(owner[wanted], kind="stable")]
        samples = self.samples[group]
        each = self.cost(np.repeat(self.image_tokens[group], samples), found.tokens[wanted])
        costs = np.add.reduceat(each, np.cumsum(samples) - samples)
        return _by_cost(group, costs, samples, found.rows[wanted])

    def mixture(self) -> dict[tuple[str, str, tuple[str, ...]], float]:
        """Each stream's planned share of the samples, by split, task and class. The shares sum to one."""
        units = np.concatenate(
            [of * part.counts / PERIOD for of, part in zip(self.streams.counts, self.inside, strict=True)]
        )
        shares: dict[tuple[str, str, tuple[str, ...]], float] = {}
        whole = float((units * self.samples).sum())
        for group, share in zip(self.groups, (units * self.samples / whole).tolist(), strict=True):
            stream = group.split, group.task, group.kind
            shares[stream] = shares.get(stream, 0.0) + share
        return shares

    def shares(self) -> dict[str, float]:
        """The planned share of the samples of each split, each task and each value of a class: "raw", "script=none"."""
        found: dict[str, float] = {}
        for (split, task, kind), share in self.mixture().items():
            for name in (split, task, *kind):
                found[name] = found.get(name, 0.0) + share
        return found

    def used(self, step: int) -> np.ndarray:
        """Units of each group handed out before `step`: int64 [groups]."""
        taken = self.streams.before((step - self.first_step) * self.units)
        return np.concatenate([part.before(int(count)) for part, count in zip(self.inside, taken, strict=True)])

    def passes(self, step: int) -> np.ndarray:
        """How often each group was gone through before `step`, the open pass as a fraction: float64 [groups]."""
        return (self.old + self.used(step) * self.samples) / self.sizes

    def seen(self, step: int) -> dict[str, np.ndarray]:
        """By split, the rows used in the open pass of their group before `step`: all that a switch must know."""
        used = self.used(step)
        found: dict[str, list[np.ndarray]] = {group.split: [] for group in self.groups}
        for number, group in enumerate(self.groups):
            found[group.split].append(self._seen(number, int(used[number])))
        return {split: np.sort(np.concatenate(parts)) for split, parts in found.items()}

    def _seen(self, number: int, used: int) -> np.ndarray:
        size, old, lanes = int(self.sizes[number]), int(self.old[number]), int(self.lanes[number])
        stretch = self._stretches(np.asarray([number]), np.asarray([used // lanes]))
        handed = stretch.lane < used % lanes
        whole = used // lanes * lanes * int(self.samples[number])
        lap = int(max((old + whole) // size, stretch.lap[handed].max(initial=0)))
        places = np.arange(max(0, lap * size - old), whole)
        earlier, _ = self._sequence(np.full(len(places), number), places)
        begins = int(self.starts[number])
        before = self.rows[begins : begins + old] if lap == 0 else self.rows[:0]
        return np.concatenate([before, earlier, stretch.rows[handed & (stretch.lap == lap)]])

    def _slots(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each slot's group, and how many of the group's units came before."""
        stream, ordinal = self.streams.at(slots)
        group = np.empty_like(ordinal)
        first = 0
        for number, part in enumerate(self.inside):
            mine = stream == number
            item, ordinal[mine] = part.at(ordinal[mine])
            group[mine] = first + item
            first += len(part.counts)
        return group, ordinal

    def _sequence(self, group: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The row at each place of its group's endless sequence, and its pass (0 is the open one).

        A pass goes through the group in fixed turns and shuffles inside each. So two visits to a row lie at least a
        pass less a turn apart, further than a stretch is long: no unit holds a row twice, unless it is larger than its
        group.
        """
        size, turn = self.sizes[group], self.turn[group]
        lap, place = np.divmod(place + self.old[group], size)
        number = place // turn
        low = np.maximum(number * turn, np.where(lap == 0, self.old[group], 0))
        high = np.minimum((number + 1) * turn, size)
        drawn = permute(place - low, high - low, key(self.seed, self.number, group, lap, number))
        return self.rows[self.starts[group] + low + drawn], lap

    def _stretches(self, group: np.ndarray, number: np.ndarray) -> Stretches:
        """The samples of each group's stretch `number`, dealt to its lanes in snake order of text length."""
        length = self.lanes[group] * self.samples[group]
        which = np.repeat(np.arange(len(group)), length)
        place = np.arange(len(which)) - np.repeat(np.cumsum(length) - length, length)
        row, lap = self._sequence(group[which], (number * length)[which] + place)
        tokens = self.tokens[self.split[group[which]], row].astype(np.int64)
        order = np.lexsort((-tokens, which))
        round_, lane = np.divmod(place, self.lanes[group[which]])
        lane = np.where(round_ % 2 == 0, lane, self.lanes[group[which]] - 1 - lane)
        return Stretches(which, lane, row[order], lap[order], tokens[order])


def _by_cost(group: np.ndarray, costs: np.ndarray, samples: np.ndarray, rows: np.ndarray) -> Dealt:
    """Units in falling order of cost; equal ones keep their slots' order."""
    order = np.argsort(-costs, kind="stable")
    begins = (np.cumsum(samples) - samples)[order]
    starts = np.concatenate([[0], np.cumsum(samples[order])])
    at = np.repeat(begins - starts[:-1], samples[order]) + np.arange(len(rows))
    return Dealt(group[order], costs[order], starts, rows[at])


def compile_entry(
    selection: Selection,
    recipe: RecipeConfig,
    *,
    seed: int,
    cost: CostModel,
    first_step: int = 0,
    number: int = 0,
    seen: Mapping[str, np.ndarray] | None = None,
) -> Entry:
    """The entry that trains on `selection` from `first_step`.

    `seen` holds by split the rows used in the open pass (Entry.seen), which then wait for the next one: the entry
    continues that pass; without it, it starts another.
    """
    references, classes = selection.references, selection.classes
    kinds: tuple[tuple[str, ...], ...] = ((),) if classes is None else classes.names
    groups: list[Group] = []
    columns: list[tuple[int, np.ndarray, np.ndarray]] = []
    rates: list[list[float]] = []
    streams: list[_Stream] = []
    for (index, split), task in product(enumerate(selection.splits), sorted(recipe.tasks)):
        by_class = _columns(selection, index, task, (seen or {}).get(split))
        samples = unit_sizes(selection, recipe, cost, task) if by_class else []
        for kind, mine in by_class.items():
            weight = recipe.splits[split] * recipe.tasks[task] * (1 if classes is None else float(classes.weight[kind]))
            each = weight / sum(len(old) + len(fresh) for old, fresh in mine.values())
            for size in sorted({samples[b] for b in mine}) if classes is not None else [0]:
                part = {b: parts for b, parts in mine.items() if samples[b] == size or not size}
                groups += [Group(split, task, selection.buckets[b], samples[b], kinds[kind]) for b in part]
                columns += [(index, old, fresh) for old, fresh in part.values()]
                rates.append([each * (len(old) + len(fresh)) / samples[b] for b, (old, fresh) in part.items()])
                streams.append(_Stream(index, int(task != T2I), kind, size))
    counts = np.asarray([len(old) + len(fresh) for _, old, fresh in columns])
    sizes = np.asarray([group.samples for group in groups])
    lanes = np.clip(counts // (2 * sizes), 1, np.maximum(_LANES, _STRETCH // sizes))
    turns = _turns(counts, lanes * sizes)
    return Entry(
        first_step=first_step,
        units=recipe.units,
        seed=seed,
        number=number,
        groups=tuple(groups),
        cost=cost,
        streams=_interleaved([sum(rate) for rate in rates], streams, classes),
        inside=tuple(Interleave.build(rate) for rate in rates),
        rows=np.concatenate(
            [_spread(part, t) for (_, *parts), t in zip(columns, turns.tolist(), strict=True) for part in parts]
        ),
        starts=np.concatenate([[0], np.cumsum(counts)]),
        old=np.asarray([len(old) for _, old, _ in columns]),
        tokens=selection.tokens if references is None else selection.tokens + references,
        split=np.asarray([split for split, _, _ in columns]),
        lanes=lanes,
        turn=-(-counts // turns),
    )


def unit_sizes(selection: Selection, recipe: RecipeConfig, cost: CostModel, task: str = T2I) -> list[int]:
    """Samples in a unit of each bucket: `recipe.samples` in the smallest resolution, elsewhere as many as cost that.

    Counted for a square picture of the resolution and the mean caption, so the aspects of a resolution agree; for edits
    with the mean of their references.
    """
    used = selection.tokens[:, ~selection.held_out]
    mean = np.asarray(int(used[used >= 0].mean()))
    costs = {size: int(cost(np.asarray((size // MULTIPLE) ** 2), mean)) for size in sorted(recipe.resolutions)}
    full = recipe.samples * min(costs.values())
    if task != T2I and selection.references is not None:
        shown = mean + int(selection.references[selection.of_task(task)].mean())
        costs = {size: int(cost(np.asarray((size // MULTIPLE) ** 2), np.asarray(shown))) for size in costs}
    sizes: dict[Bucket, int] = {}
    for resolution, one in costs.items():
        for bucket in recipe.buckets(resolution):
            sizes.setdefault(bucket, max(1, round(full / one)))
    return [sizes[bucket] for bucket in selection.buckets]


class _Stream(NamedTuple):
    """Numbers of what a stream is of. With classes, one whose units have two sizes is two of them."""

    split: int
    task: int
    kind: int
    samples: int


def _interleaved(rates: list[float], streams: list[_Stream], classes: Classes | None) -> Interleave:
    """The sequence of streams. With classes there are many: then each, each split and each value is kept even."""
    if classes is None:
        return Interleave.build(rates)
    whole = {stream[:3] for stream in streams}
    if len(streams) > _MAX_STREAMS:
        raise RecipeError(
            f"recipe.classes: {len(classes.names)} classes that have rows make {len(whole)} streams of a split, a task "
            f"and a class, {len(streams)} by size of unit; at most {_MAX_STREAMS} can be mixed: give fewer tags or "
            "values a weight"
        )
    split, task, kind, samples = zip(*streams, strict=True)
    one = [sorted(whole).index(stream[:3]) for stream in streams]
    marks = np.stack([np.asarray(mark) for mark in (one, split, task, *classes.value[:, kind])])
    return Interleave.balanced(rates, samples, marks)


def _columns(
    selection: Selection, split: int, task: str, seen: np.ndarray | None
) -> dict[int, dict[int, tuple[np.ndarray, np.ndarray]]]:
    """By class, then by bucket: the rows of a split and task to train on, those seen and those not."""
    used = (selection.tokens[split] >= 0) & ~selection.held_out
    rows = np.flatnonzero(used if selection.references is None else used & selection.of_task(task))
    fresh = np.ones(len(rows), bool) if seen is None else ~np.isin(rows, seen)
    buckets, place = len(selection.buckets), selection.bucket[rows]
    if selection.classes is not None:
        place = selection.classes.row[rows].astype(np.int32) * buckets + place
    cells = buckets * (1 if selection.classes is None else len(selection.classes.names))
    # Of 16 bits, which are sorted in linear time, as far as these reach.
    kind: type[np.signedinteger[Any]] = np.int16 if 2 * cells <= 2**15 else np.int32
    place = np.asarray(place, kind) + cells * fresh.astype(kind)
    parts = np.split(rows[np.argsort(place, kind="stable")], np.cumsum(np.bincount(place, minlength=2 * cells))[:-1])
    found: dict[int, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for cell in range(cells):
        if len(parts[cell]) + len(parts[cells + cell]):
            found.setdefault(cell // buckets, {})[cell % buckets] = parts[cell], parts[cells + cell]
    return found


def _turns(counts: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """The fewest turns of a pass for which no stretch meets a row twice; one where the group is too small anyway."""
    spare = counts - stretch + 1
    return np.where(spare > 0, -(-counts // np.maximum(spare, 1)), 1)


def _spread(rows: np.ndarray, turns: int) -> np.ndarray:
    """Every `turns`-th row, then the next ones: the index is sorted by key, and a turn should meet all of it."""
    return np.concatenate([rows[turn::turns] for turn in range(turns)])
