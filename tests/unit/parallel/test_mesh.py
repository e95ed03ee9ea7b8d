"""Layouts that fit and those that do not."""

import pytest
from pydantic import ValidationError

from parallel.config import MeshConfig
from parallel.mesh import MeshError, check


def test_a_degree_that_does_not_divide_the_heads_is_refused_with_those_that_do() -> None:
    with pytest.raises(MeshError) as refused:
        check(MeshConfig(tp=5), num_heads=24, world=5)
    assert str(refused.value) == "mesh.tp: 5 does not divide num_heads 24; use 1, 2, 3, 4, 6, 8, 12 or 24"


def test_ranks_that_are_no_multiple_of_the_degree_are_refused() -> None:
    with pytest.raises(MeshError, match=r"^mesh.tp: 2 does not divide the 3 ranks of this job; start a multiple of 2"):
        check(MeshConfig(tp=2), num_heads=24, world=3)


@pytest.mark.parametrize("tp", [1, 2, 3, 4, 6, 8, 12, 24])
def test_a_divisor_of_the_heads_fits(tp: int) -> None:
    check(MeshConfig(tp=tp), num_heads=24, world=2 * tp)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cp": 2}, "attention is per rank; use 1"),
        ({"sp": True}, "mesh.sp: splits tokens over tensor-parallel ranks, and mesh.tp is 1"),
        ({"tp": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_run_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        MeshConfig(**settings)
