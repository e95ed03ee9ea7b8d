"""A recipe can change in mid-pass: nothing comes twice, nothing is lost."""

import numpy as np
import pytest

from producer.cost import CostModel
from producer.entry import Entry, compile_entry
from producer.recipe import RecipeConfig, Selection, Threshold, select
from tests.unit.producer.rows import table

COST = CostModel(40, 2)
ROWS = table(3000, seed=4)


def chosen(selection: Selection) -> set[int]:
    return set(np.flatnonzero((selection.tokens[0] >= 0) & ~selection.held_out).tolist())


def handed(entry: Entry, steps: range) -> list[int]:
    return [row for step in steps for row in entry.deal(step).rows.tolist()]


@pytest.mark.parametrize("switch", [0, 1, 25])
def test_a_switch_continues_the_pass_with_the_rows_it_has_not_seen(switch: int) -> None:
    old = RecipeConfig(units=8, samples=8, min_fill=0.05)
    new = old.model_copy(
        update={"resolutions": (256, 640), "min_fill": 0.5, "thresholds": {"aesthetic": Threshold(min=2.0)}}
    )
    first = compile_entry(select(ROWS, old), old, seed=1, cost=COST)
    before = handed(first, range(switch))
    seen = first.seen(switch)
    assert sorted(before) == seen["raw"].tolist(), "the first pass is still open"
    selection = select(ROWS, new)
    second = compile_entry(selection, new, seed=1, cost=COST, first_step=switch, number=1, seen=seen)
    fresh = chosen(selection) - set(before)
    assert int((second.sizes - second.old).sum()) == len(fresh)
    after: list[int] = []
    step, open_groups = switch, True
    while open_groups:
        after += second.deal(step).rows.tolist()
        step += 1
        # As long as no group can have begun its next pass, nothing may come that came before.
        reached = second.old + (second.used(step) + second.lanes) * second.samples
        if (reached <= second.sizes).all():
            assert len(set(after)) == len(after) and not set(after) & set(before)
        open_groups = bool((second.passes(step) * second.sizes < second.sizes + second.lanes * second.samples).any())
    assert fresh <= set(after), "rows of the open pass were lost"


def test_what_was_seen_follows_the_open_pass_and_starts_again_with_the_next() -> None:
    square = table(1024, width=[256] * 1024, height=[256] * 1024)
    recipe = RecipeConfig(units=4, samples=4)
    entry = compile_entry(select(square, recipe), recipe, seed=3, cost=COST)
    assert [len(entry.seen(step)["raw"]) for step in (0, 1, 10, 63, 64, 65, 128 + 5)] == [0, 16, 160, 1008, 0, 16, 80]
    assert entry.seen(70)["raw"].tolist() == sorted(handed(entry, range(64, 70)))


def test_a_continued_pass_is_counted_from_what_was_seen() -> None:
    recipe = RecipeConfig(units=8, samples=8, min_fill=0.05, aspects=("1:1",))
    selection = select(ROWS, recipe)
    first = compile_entry(selection, recipe, seed=1, cost=COST)
    second = compile_entry(selection, recipe, seed=1, cost=COST, first_step=30, number=1, seen=first.seen(30))
    assert second.passes(30).tolist() == first.passes(30).tolist() == [30 * 64 / 3000]


def test_a_restarted_pass_takes_every_row_again() -> None:
    recipe = RecipeConfig(units=8, samples=8, min_fill=0.05)
    selection = select(ROWS, recipe)
    entry = compile_entry(selection, recipe, seed=1, cost=COST, first_step=30, number=1)
    assert entry.passes(30).max() == 0.0
    assert handed(entry, range(30, 40)) != handed(compile_entry(selection, recipe, seed=1, cost=COST), range(10))


def test_no_unit_holds_a_row_twice_even_where_a_continued_pass_ends() -> None:
    recipe = RecipeConfig(units=1, samples=8, aspects=("1:1",), min_fill=0.05)
    for rows in (8, 9, 15, 16, 17, 40, 300):
        for count in (1, rows // 2, rows - 1):
            selection = select(table(rows), recipe)
            seen = {"raw": np.arange(count)}
            entry = compile_entry(selection, recipe, seed=rows, cost=COST, seen=seen)
            for step in range(3 * rows // 8):
                assert len(set(handed(entry, range(step, step + 1)))) == 8
