"""Which units of a step a data-parallel rank takes: computed by every rank alone, from three numbers."""


class DealError(ValueError):
    """The ranks cannot share a step's units evenly."""


def deal(units: int, ranks: int, rank: int) -> list[int]:
    """The unit numbers of one step that `rank` of `ranks` takes, in the order it takes them.

    Units are numbered by falling cost and dealt in snake order, so that the ranks' sums come close.

    >>> deal(8, 4, 0), deal(8, 4, 3)
    ([0, 7], [3, 4])
    """
    if ranks < 1 or units < 1 or units % ranks:
        raise DealError(
            f"{ranks} data-parallel ranks cannot share {units} units a step evenly: "
            f"use {_choice(divisors(units))} ranks, or change recipe.units"
        )
    if not 0 <= rank < ranks:
        raise DealError(f"rank {rank} is not one of {ranks} data-parallel ranks")
    return [lap * ranks + (rank if lap % 2 == 0 else ranks - 1 - rank) for lap in range(units // ranks)]


def divisors(units: int) -> list[int]:
    """How many ranks may share `units` units a step."""
    return [count for count in range(1, units + 1) if units % count == 0]


def _choice(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
