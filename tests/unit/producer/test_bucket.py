"""Buckets are sizes the model can train on, near the pixels and the shape that were asked for."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.api.bucket import ASPECTS, MULTIPLE, Bucket, bucket, nearest, parse


@pytest.mark.parametrize("resolution", [256, 512, 640, 1024, 1328])
@pytest.mark.parametrize("aspect", ASPECTS)
def test_every_bucket_is_near_the_pixels_and_the_shape_asked_for(resolution: int, aspect: str) -> None:
    across, _, down = aspect.partition(":")
    found = bucket(resolution, aspect)
    assert found.height % MULTIPLE == found.width % MULTIPLE == 0
    assert found.height * found.width == pytest.approx(resolution**2, rel=0.13)
    assert found.width / found.height == pytest.approx(int(across) / int(down), rel=0.08)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_a_turned_aspect_gives_the_turned_bucket(aspect: str) -> None:
    across, _, down = aspect.partition(":")
    height, width = bucket(640, f"{down}:{across}")
    assert bucket(640, aspect) == (width, height)


def test_1328_has_the_sizes_of_the_released_model() -> None:
    wide = {"1:1": (1328, 1328), "16:9": (1664, 928), "4:3": (1472, 1104), "3:2": (1584, 1056)}
    assert {aspect: tuple(reversed(bucket(1328, aspect))) for aspect in wide} == wide
    assert bucket(1328, "1:1").tokens == 6889
    assert bucket(1328, "16:9").tokens == 6032


def test_256_has_as_many_tokens_as_a_sixteenth_of_its_sides() -> None:
    assert bucket(256, "1:1").tokens == 256
    assert bucket(256, "2:3") == (320, 208)


@given(st.integers(16, 4096), st.integers(1, 30), st.integers(1, 30))
def test_no_side_vanishes_however_long_the_shape(resolution: int, across: int, down: int) -> None:
    assert min(bucket(resolution, f"{across}:{down}")) >= MULTIPLE


@given(st.integers(1, 500), st.integers(1, 500))
def test_a_name_reads_back(rows: int, columns: int) -> None:
    found = Bucket(16 * rows, 16 * columns)
    assert parse(str(found)) == found
    assert found.tokens == rows * columns


def test_the_nearest_bucket_is_nearest_by_shape_not_by_size() -> None:
    buckets = tuple(bucket(256, aspect) for aspect in ASPECTS)
    assert nearest(4000, 4010, buckets) == bucket(256, "1:1")
    assert nearest(90, 160, buckets) == bucket(256, "16:9")
    assert nearest(3000, 100, buckets) == bucket(256, "1:3")
    assert nearest(100, 149, buckets) == bucket(256, "3:2")


def test_an_equally_near_shape_goes_to_the_first() -> None:
    square, wide = Bucket(256, 256), Bucket(128, 512)
    between = (128, 256)
    assert math.log(2) == math.log(4) - math.log(2)
    assert nearest(*between, (square, wide)) == square
    assert nearest(*between, (wide, square)) == wide
