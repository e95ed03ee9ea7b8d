"""Duplicates: copies are found whatever was done to them, different photographs never, and the best copy is kept."""

import io
import tracemalloc

import cv2
import imagehash
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from skimage import data

from producer.operator.exact_duplicate import ExactDuplicate
from producer.operator.judgement import Facts
from producer.operator.near_duplicate import NearDuplicate, NearDuplicateConfig, compare, hash_pixels

PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "coins", "rocket", "moon", "immunohistochemistry")
RADIUS = NearDuplicateConfig().radius


def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(data, name)()).convert("RGB")


def again(picture: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return Image.open(out).convert("RGB")


def distance(one: Image.Image, other: Image.Image) -> int:
    """Bits apart in the worse of both hashes."""
    pairs = zip(hash_pixels(np.asarray(one)), hash_pixels(np.asarray(other)), strict=True)
    return max((a ^ b).bit_count() for a, b in pairs)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_copy_encoded_again_resized_or_recoloured_a_little_is_within_the_radius(name: str) -> None:
    picture = photograph(name)
    width, height = picture.size
    copies = {
        "quality 40": again(picture, 40),
        "8 % smaller": picture.resize((width * 92 // 100, height * 92 // 100), Image.Resampling.LANCZOS),
        "half the size": picture.resize((width // 2, height // 2), Image.Resampling.BILINEAR),
        "a bit brighter": picture.point(lambda value: min(255, round(value * 1.05 + 4))),
        "grey": picture.convert("L").convert("RGB"),
    }
    assert {how: d for how, copy in copies.items() if (d := distance(picture, copy)) > RADIUS} == {}


def test_different_photographs_and_different_parts_of_one_are_far_beyond_the_radius() -> None:
    whole = [photograph(name) for name in PHOTOGRAPHS]
    parts = [picture.crop((x, y, x + 200, y + 200)) for picture in whole for x, y in ((0, 0), (90, 90), (20, 100))]
    pictures = whole + parts
    apart = [distance(a, b) for n, a in enumerate(pictures) for b in pictures[:n]]
    assert min(apart) > 2 * RADIUS


def test_two_hashes_must_agree() -> None:
    """A picture with its columns in another order keeps neither; with the same pHash alone it is no duplicate."""
    hashes = np.asarray([0, 0, 0b111], np.uint64)
    far = np.asarray([0, 2**40 - 1, 0], np.uint64)
    closest, group = compare(hashes, far, 6)
    assert closest.tolist() == [3, 40, 3]
    assert group[0] == group[2] != group[1]


def test_our_hash_is_the_published_one() -> None:
    """ImageHash's pHash takes a 32 x 32 picture's lowest 8 x 8 frequencies too, another resize and median apart."""
    for name in PHOTOGRAPHS:
        picture = photograph(name)
        ours = hash_pixels(np.asarray(picture))[0]
        theirs = int(str(imagehash.phash(picture)), 16)
        assert (ours ^ theirs).bit_count() <= 4, name


def test_hashes_do_not_depend_on_threads() -> None:
    pixels = np.asarray(photograph("astronaut"))
    threads = cv2.getNumThreads()
    try:
        found = set()
        for number in (1, 2):
            cv2.setNumThreads(number)
            found.add(hash_pixels(pixels))
    finally:
        cv2.setNumThreads(threads)
    assert len(found) == 1


HASHES = arrays(np.uint64, st.integers(0, 40), elements=st.integers(0, 2**64 - 1) | st.integers(0, 255))


@given(HASHES, st.integers(0, 64), st.integers(1, 200), st.data())
def test_the_search_is_exact_whatever_the_size_of_its_blocks(
    phash: np.ndarray, radius: int, pairs: int, draw: st.DataObject
) -> None:
    """Against all pairs one by one and groups by repeated merging."""
    dhash = draw.draw(arrays(np.uint64, len(phash), elements=st.integers(0, 255)))
    number = len(phash)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("producer.operator.near_duplicate._PAIRS", pairs)
        closest, group = compare(phash, dhash, radius)
    expected = np.full(number, np.nan)
    groups = [{row} for row in range(number)]
    for a in range(number):
        for b in range(number):
            if a != b:
                bits = max(int(p[a] ^ p[b]).bit_count() for p in (phash, dhash))
                expected[a] = bits if np.isnan(expected[a]) else min(expected[a], bits)
                if bits <= radius and groups[a] is not groups[b]:
                    groups[a] |= groups[b]
                    for row in groups[a]:
                        groups[row] = groups[a]
    assert np.array_equal(closest, expected, equal_nan=True)
    assert [set(np.flatnonzero(group == group[row])) for row in range(number)] == groups


def test_a_crowd_of_equal_pictures_takes_no_more_memory_than_a_block() -> None:
    same = np.zeros(4000, np.uint64)
    tracemalloc.start()
    closest, group = compare(same, same, 6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (closest == 0).all() and len(set(group)) == 1
    # All 16 million pairs as two int64 columns would be 256 MB.
    assert peak < 100e6


def facts(keys: list[str], pixels: list[int], phash: list[int], sha256: list[str] | None = None) -> Facts:
    hashes = np.asarray(phash, np.uint64)
    return Facts(keys, np.asarray(pixels), sha256 or keys, hashes, hashes)


def test_of_near_duplicates_the_largest_is_kept_and_among_equals_the_first_by_key() -> None:
    found = NearDuplicate(NearDuplicateConfig()).cluster(
        facts(["d", "b", "c", "a", "e"], [100, 400, 400, 100, 900], [0, 1, 3, 2, 2**50 - 1])
    )
    assert found.representative.tolist() == [1, 1, 1, 1, 4]
    assert found.score.tolist() == [1, 1, 1, 1, 48]
    assert found.reason[0] == "looks like b"


def test_links_join_into_one_cluster_though_its_ends_are_far_apart() -> None:
    found = NearDuplicate(NearDuplicateConfig(radius=6)).cluster(
        facts(["a", "b", "c"], [1, 1, 1], [0, 0b111111, 0b111111111111])
    )
    assert found.representative.tolist() == [0, 0, 0]


@pytest.mark.parametrize("keys", [[], ["alone"]])
def test_nothing_and_one_sample_alone_have_no_duplicates(keys: list[str]) -> None:
    one = facts(keys, [1] * len(keys), [5] * len(keys))
    near, exact = NearDuplicate(NearDuplicateConfig()).cluster(one), ExactDuplicate().cluster(one)
    assert near.representative.tolist() == exact.representative.tolist() == list(range(len(keys)))
    assert np.isnan(near.score).all() and not exact.score.any()


def test_of_exact_duplicates_the_first_by_key_is_kept() -> None:
    found = ExactDuplicate().cluster(facts(["z", "b", "a", "c"], [1] * 4, [0] * 4, ["same", "same", "other", "same"]))
    assert found.representative.tolist() == [1, 1, 2, 1]
    assert found.score.tolist() == [2, 2, 0, 2]
    assert found.reason[0] == "the same bytes as b"
