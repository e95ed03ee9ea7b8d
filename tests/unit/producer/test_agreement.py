"""What is drawn can be read: by a recogniser that was trained on other pictures than ours."""

from pathlib import Path

import pytest

from tests.unit.producer.agreement import agreements, distance, ways

# Of characters; tests/bench/test_synthesize.py asks for it on many more pictures.
LEAST = 0.98


def test_the_distance_counts_what_must_change() -> None:
    assert [distance(*pair) for pair in (("", "abc"), ("abc", "abc"), ("kitten", "sitting"), ("天气好", "天气"))] == [
        3,
        0,
        3,
        1,
    ]


@pytest.mark.parametrize("number", range(3), ids=("pure", "compositional", "template"))
def test_common_text_is_read_as_it_was_drawn(tmp_path: Path, number: int) -> None:
    way = ways(tmp_path, 0)[number]
    found = agreements(way.make(index) for index in range(5))
    assert found["chinese"].drawn > 20
    assert {script: one.share for script, one in found.items() if one.share < LEAST} == {}
