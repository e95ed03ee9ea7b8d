"""Every unit of a step goes to one rank, whatever their number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.api.deal import DealError, deal


@given(st.integers(1, 64), st.integers(1, 32))
def test_each_unit_goes_to_exactly_one_rank_and_each_rank_gets_as_many(ranks: int, each: int) -> None:
    shares = [deal(ranks * each, ranks, rank) for rank in range(ranks)]
    assert sorted(unit for share in shares for unit in share) == list(range(ranks * each))
    assert {len(share) for share in shares} == {each}


def test_ranks_take_turns_forth_and_back() -> None:
    assert [deal(9, 3, rank) for rank in range(3)] == [[0, 5, 6], [1, 4, 7], [2, 3, 8]]


@given(st.integers(1, 32), st.integers(1, 8))
def test_falling_costs_come_out_nearly_even(ranks: int, laps: int) -> None:
    # On a straight line, forth and back cancel: after whole turns all ranks hold the same.
    units = 2 * laps * ranks
    sums = {sum(units - unit for unit in deal(units, ranks, rank)) for rank in range(ranks)}
    assert len(sums) == 1


def test_ranks_that_do_not_divide_the_units_are_refused_with_those_that_do() -> None:
    with pytest.raises(DealError, match=r"5 data-parallel ranks cannot share 12 .* use 1, 2, 3, 4, 6 or 12 ranks"):
        deal(12, 5, 0)
    with pytest.raises(DealError, match=r"2 data-parallel ranks .* use 1 ranks"):
        deal(1, 2, 0)
    with pytest.raises(DealError):
        deal(4, 8, 0)


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_beyond_the_number_of_ranks_is_refused(rank: int) -> None:
    with pytest.raises(DealError, match=f"rank {rank} is not one of 4"):
        deal(8, 4, rank)
