"""Shuffles that are never made, and sequences that keep shares."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from producer.interleave import PERIOD, Interleave
from producer.keyed import key, of_strings
from producer.permutation import permute


@given(st.integers(1, 400), st.integers(0, 1 << 60))
def test_a_shuffle_keeps_every_place(size: int, seed: int) -> None:
    drawn = permute(np.arange(size), np.asarray(size), key(seed))
    assert sorted(drawn.tolist()) == list(range(size))


def test_places_of_different_shuffles_are_drawn_together() -> None:
    sizes = np.asarray([1, 2, 3, 100, 1000])
    each = [permute(np.arange(size), np.asarray(size), key(9, size)) for size in sizes.tolist()]
    places = np.concatenate([np.arange(size) for size in sizes.tolist()])
    together = permute(places, np.repeat(sizes, sizes), np.repeat(key(9, sizes), sizes))
    assert np.array_equal(together, np.concatenate(each))


def test_a_part_of_a_huge_shuffle_is_drawn_without_the_rest() -> None:
    size = 10**12
    drawn = permute(np.arange(size - 1000, size), np.asarray(size), key(7))
    assert len(set(drawn.tolist())) == 1000 and drawn.min() >= 0 and drawn.max() < size
    assert abs(drawn.mean() / size - 0.5) < 0.05


def test_every_place_is_equally_likely_over_keys() -> None:
    size, keys = 12, 6000
    drawn = permute(np.tile(np.arange(size), keys), np.asarray(size), np.repeat(key(np.arange(keys)), size))
    for place in (0, 5, 11):
        counts = np.bincount(drawn.reshape(keys, size)[:, place], minlength=size)
        # Chi-square of 11 degrees of freedom: above 31.3 once in a thousand.
        assert ((counts - keys / size) ** 2 / (keys / size)).sum() < 31.3


def test_neighbours_do_not_stay_together() -> None:
    size = 5000
    drawn = permute(np.arange(size), np.asarray(size), key(3))
    assert np.count_nonzero(np.abs(np.diff(drawn)) == 1) < 15
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.05


def test_hashes_of_strings_are_of_their_bytes_alone() -> None:
    words = ["", "a", "b", "ab", "ba", "aa", "a" * 300, "小狗", "", "ab\x00", "ab"]
    whole = of_strings(pa.chunked_array([words]), 5)
    pieces = of_strings(pa.chunked_array([words[:3], [], words[3:]]), 5)
    alone = np.concatenate([of_strings(pa.chunked_array([[word]]), 5) for word in words])
    sliced = of_strings(pa.chunked_array([pa.array(["before", *words, "after"]).slice(1, len(words))]), 5)
    assert np.array_equal(whole, pieces) and np.array_equal(whole, alone) and np.array_equal(whole, sliced)
    assert len(set(whole.tolist())) == len(set(words))
    assert not set(whole.tolist()) & set(of_strings(pa.chunked_array([words]), 6).tolist())


def test_hashes_of_like_strings_fill_their_range_evenly() -> None:
    names = pa.chunked_array([[f"shard-{n // 1000:05d}/{n:08d}" for n in range(100_000)]])
    hashes = of_strings(names, 1)
    assert len(np.unique(hashes)) == 100_000
    counts = np.bincount((hashes >> np.uint64(58)).astype(np.int64), minlength=64)
    # Chi-square of 63 degrees of freedom: above 103 once in a thousand.
    assert ((counts - 100_000 / 64) ** 2 / (100_000 / 64)).sum() < 103


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=12), st.integers(0, 3 * PERIOD), st.integers(1, 3000))
def test_shares_hold_in_every_window(rates: list[float], start: int, length: int) -> None:
    mixed = Interleave.build(rates)
    items, _ = mixed.at(np.arange(start, start + length))
    found = np.bincount(items, minlength=len(rates))
    off = np.abs(found - np.asarray(rates) / sum(rates) * length)
    # Every item is spread evenly, but the others push its slots about: by their number at most.
    assert off.max() <= 1 + len(rates) / 2 + length * len(rates) / PERIOD


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=12), st.integers(0, 3 * PERIOD), st.integers(1, 500))
def test_each_item_is_counted_without_a_gap(rates: list[float], start: int, length: int) -> None:
    mixed = Interleave.build(rates)
    items, ordinals = mixed.at(np.arange(start, start + length))
    before, after = mixed.before(start), mixed.before(start + length)
    for item in range(len(rates)):
        assert ordinals[items == item].tolist() == list(range(int(before[item]), int(after[item])))


def test_a_rare_item_is_never_left_out() -> None:
    items, _ = Interleave.build([1.0, 1e-9]).at(np.arange(PERIOD))
    assert np.count_nonzero(items == 1) == 1
