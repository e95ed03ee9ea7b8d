"""A fixed sequence that takes every item at its rate and spreads it evenly: shares hold in short windows too."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from producer.keyed import key

# Slots until the sequence repeats; shares are exact to one slot in this many, and no item has fewer than one.
PERIOD = 1 << 16


@dataclass(frozen=True, eq=False)
class Interleave:
    """Slot -> item, and how often the item came before."""

    items: np.ndarray  # int32 [PERIOD]: the item of each slot of a period
    ordinals: np.ndarray  # int32 [PERIOD]: its count within the period before this slot
    counts: np.ndarray  # int64 [items]: slots of each item in a period

    @classmethod
    def build(cls, rates: Sequence[float]) -> "Interleave":
        """The sequence of items with these positive rates, of any sum."""
        counts = _counts(rates)
        item = np.repeat(np.arange(len(counts)), counts)
        ordinal = np.arange(PERIOD) - np.repeat(np.cumsum(counts) - counts, counts)
        # Each item at even distances, from a start of its own so that equal rates do not bunch.
        start = key(np.arange(len(counts))) / 2**64
        order = np.lexsort((item, (ordinal + start[item]) / counts[item]))
        return cls(item[order].astype(np.int32), ordinal[order].astype(np.int32), counts)

    @classmethod
    def balanced(cls, rates: Sequence[float], samples: Sequence[int], marks: np.ndarray) -> "Interleave":
        """The same, where a slot of an item is so many samples, and items share marks: int64 [kinds of marks, items].

        Of every mark the share of samples is spread evenly too; item by item alone, what they are early or late adds
        up. Each slot takes the item that is furthest behind, its own arrears and those of its marks together: in
        integers, so the same on every machine.
        """
        counts, size = _counts(rates), np.asarray(samples, np.int64)
        alike = np.eye(len(counts), dtype=np.int64) + (marks[:, :, None] == marks[:, None, :]).sum(axis=0)
        whole = int((counts * size).sum())
        # By sample handed out: what falls due to each item and its marks, and what the item that is taken takes.
        due, taken = alike @ (counts * size), alike * whole
        left, behind = counts.tolist(), due * (whole // PERIOD)
        items = np.empty(PERIOD, np.int32)
        for slot in range(PERIOD):
            item = int(behind.argmax())
            behind += (due - taken[item]) * samples[item]
            items[slot] = item
            left[item] -= 1
            if not left[item]:
                behind[item] = np.iinfo(np.int64).min // 2
        return cls(items, _ordinals(items, counts), counts)

    def at(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each slot's item, and how many earlier slots had the same."""
        place = slots % PERIOD
        item = self.items[place]
        return item, slots // PERIOD * self.counts[item] + self.ordinals[place]

    def before(self, slot: int) -> np.ndarray:
        """How many slots before `slot` each item had: int64 [items]."""
        part = np.bincount(self.items[: slot % PERIOD], minlength=len(self.counts))
        return slot // PERIOD * self.counts + part


def _counts(rates: Sequence[float]) -> np.ndarray:
    """Slots of a period for each of these positive rates, at least one: int64."""
    share = np.asarray(rates, np.float64) / sum(rates)
    counts = np.maximum(1, np.floor(share * PERIOD)).astype(np.int64)
    counts[np.argmax(counts)] += PERIOD - counts.sum()
    assert counts.min() > 0
    return counts


def _ordinals(items: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How often each slot's item came before it: int32."""
    found = np.empty(len(items), np.int32)
    found[np.argsort(items, kind="stable")] = np.arange(len(items)) - np.repeat(np.cumsum(counts) - counts, counts)
    return found
