"""Duplicates: copies are found whatever was done to them, different photographs never, and the best copy is kept."""

import io

import cv2
import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from skimage import data

from producer.clusters import Age, representatives
from producer.neighbours import Hashes, near_pairs
from producer.operator.exact_duplicate import ExactDuplicate
from producer.operator.judgement import Facts
from producer.operator.near_duplicate import NearDuplicate, NearDuplicateConfig, hash_pixels
from tests.unit.producer import all_pairs
from tests.unit.producer.all_pairs import apart, closest, clusters

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
    """With the same pHash alone a picture is no duplicate."""
    hashes = np.asarray([0, 0, 0b111], np.uint64)
    far = np.asarray([0, 2**40 - 1, 0], np.uint64)
    found = list(near_pairs(Hashes(hashes, far, ~hashes, ~far), 6))
    pairs = {
        (min(a, b), max(a, b), bits)
        for pair in found
        for a, b, bits in zip(*(one.tolist() for one in pair), strict=True)
    }
    assert pairs == {(0, 2, 3)}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_mirrored_copy_is_found_by_hashes_derived_without_mirroring(name: str) -> None:
    picture = np.asarray(photograph(name))
    plain, mirrored = hash_pixels(picture), hash_pixels(np.ascontiguousarray(picture[:, ::-1]))
    worst = [(a ^ b).bit_count() for a, b in zip(plain, (*mirrored[2:], *mirrored[:2]), strict=True)]
    assert max(worst) <= 2
    assert min((a ^ b).bit_count() for a, b in zip(plain, mirrored, strict=True)) > 2 * RADIUS


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


WORDS = st.integers(0, 2**64 - 1) | st.integers(0, 255)


@st.composite
def hash_sets(draw: st.DrawFn) -> Hashes:
    """A few words and others some bits away, so that there are equal, near and far ones."""
    number = draw(st.integers(0, 40))
    near = st.builds(lambda word, bits: word ^ bits, WORDS, st.sampled_from([0, 0, 1, 6, 2**60, 2**33 + 8, 2**12 - 1]))
    return Hashes(*(draw(arrays(np.uint64, number, elements=near)) for _ in range(4)))


def found_by_search(hashes: Hashes, radius: int) -> tuple[np.ndarray, list[set[int]]]:
    """Bits to the closest other within `radius`, 65 without one, and clusters, from the search's pairs."""
    number = len(hashes.phash)
    near, least = np.zeros((number, number), bool), np.full(number, 65)
    for one, other, bits in near_pairs(hashes, radius):
        assert (one != other).all() and (bits <= radius).all()
        near[one, other] = near[other, one] = True
        np.minimum.at(least, one, bits)
        np.minimum.at(least, other, bits)
    return least, clusters(near)


@settings(max_examples=30)
@given(hash_sets(), st.integers(0, 12))
def test_the_search_finds_what_comparing_all_pairs_finds(hashes: Hashes, radius: int) -> None:
    bits = apart(hashes)
    least, groups = found_by_search(hashes, radius)
    expected = closest(bits)
    assert np.array_equal(least, np.where(expected <= radius, expected, 65))
    assert groups == clusters(bits <= radius)


BITS = np.asarray([1 << bit for bit in range(64)], np.uint64)


def planted(number: int, seed: int = 0) -> Hashes:
    """Random hashes, a third of them a few bits from an earlier one, mirrored every other time."""
    draw = np.random.default_rng(seed)
    hashes = draw.integers(0, 2**64, (4, number), np.uint64)
    for row in range(2 * number // 3, number):
        of = int(draw.integers(0, row))
        flips = [np.bitwise_xor.reduce(BITS[draw.integers(0, 64, draw.integers(0, 8))]) for _ in range(2)]
        copy = hashes[:, of] ^ np.asarray([*flips, *flips], np.uint64)
        hashes[:, row] = copy[[2, 3, 0, 1]] if row % 2 else copy
    return Hashes(*hashes)


@pytest.mark.parametrize("radius", [0, 3, 6])
def test_the_search_is_exact_on_thousands(radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.neighbours._PART", 700)
    hashes = planted(1500)
    bits = apart(hashes)
    least, groups = found_by_search(hashes, radius)
    expected = closest(bits)
    assert np.array_equal(least, np.where(expected <= radius, expected, 65))
    assert groups == clusters(bits <= radius)
    assert radius == 0 or len({id(group) for group in groups}) < 1400


def test_a_crowd_of_equal_pictures_is_a_chain_not_all_its_pairs() -> None:
    same = np.zeros(100_000, np.uint64)
    blocks = list(near_pairs(Hashes(same, same, ~same, ~same), 6))
    # All pairs would be five thousand millions.
    assert sum(len(block.one) for block in blocks) == 99_999
    kept = representatives([block[:2] for block in blocks], age([1] * 100_000))
    assert not kept.any()


def test_a_crowd_of_nearly_equal_pictures_is_joined_by_a_share_of_its_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """All 1,000 within 4 bits of each other: half a million pairs, each of which would come up many times."""
    monkeypatch.setattr("producer.neighbours._CROWD", 64)
    draw = np.random.default_rng(0)
    crowd = [np.bitwise_xor.reduce(BITS[draw.integers(0, 64, (1000, 2))], axis=1) for _ in range(2)]
    far = draw.integers(0, 2**64, (2, 1000), np.uint64)
    blocks = [block[:2] for block in near_pairs(Hashes(*crowd, *far), 4)]
    # 25 keys for each, and under a key the leaders and neighbours, or fewer than 64 others.
    assert sum(len(one) for one, _ in blocks) < 25 * 1000 * (16 + 2 * 32)
    assert (representatives(blocks, age([1] * 1000)) == 0).all()


def age(generation: list[int], pixels: list[int] | None = None, clarity: list[float] | None = None) -> Age:
    rows = len(generation)
    return Age(np.asarray(generation), np.asarray(pixels or [1] * rows), np.asarray(clarity or [np.nan] * rows))


def facts(
    pixels: list[int], phash: list[int], sha256: list[int] | None = None, generation: list[int] | None = None
) -> Facts:
    hashes = np.asarray(phash, np.uint64)
    digests = np.asarray(sha256 if sha256 is not None else range(len(pixels)), np.uint64)
    far = np.full(len(pixels), 0x0F0F0F0F0F0F0F0F, np.uint64)
    return Facts(
        age(generation or [1] * len(pixels), pixels),
        np.stack([digests, digests], axis=1) if pixels else np.zeros((0, 2), np.uint64),
        Hashes(hashes, hashes, far, far),
    )


def test_of_near_duplicates_the_largest_is_kept_and_among_equals_the_first_by_key() -> None:
    found = NearDuplicate(NearDuplicateConfig()).cluster(facts([100, 100, 400, 400, 900], [2, 0, 1, 3, 2**50 - 1]))
    assert found.representative.tolist() == [2, 2, 2, 2, 4]
    assert found.score.tolist()[:4] == [1, 1, 1, 1] and np.isnan(found.score[4])
    assert found.reason == "looks like"


def test_among_pictures_of_one_size_the_clearest_is_kept() -> None:
    kept = representatives([(np.asarray([0, 1]), np.asarray([1, 2]))], age([1] * 3, [9] * 3, [np.nan, 5.0, 7.0]))
    assert kept.tolist() == [2, 2, 2]


def test_links_join_into_one_cluster_though_its_ends_are_far_apart() -> None:
    found = NearDuplicate(NearDuplicateConfig(radius=6)).cluster(facts([1, 1, 1], [0, 0b111111, 0b111111111111]))
    assert found.representative.tolist() == [0, 0, 0]


def test_what_an_older_generation_kept_stays_though_the_new_one_is_larger_or_joins_two_clusters() -> None:
    joined = facts([1, 900, 1], [0, 0b111111, 0b111111111111], generation=[1, 2, 1])
    found = NearDuplicate(NearDuplicateConfig()).cluster(joined)
    assert found.representative.tolist() == [0, 0, 2]
    copies = ExactDuplicate().cluster(facts([1] * 3, [0] * 3, [5, 5, 5], generation=[3, 2, 2]))
    assert copies.representative.tolist() == [1, 1, 1]


@given(st.data())
def test_representatives_are_those_of_growing_one_generation_after_the_other(draw: st.DataObject) -> None:
    rows = draw.draw(st.integers(1, 12))
    numbers = st.lists(st.integers(1, 3), min_size=rows, max_size=rows)
    generation, pixels = draw.draw(numbers), draw.draw(numbers)
    one, other = (np.asarray(draw.draw(st.lists(st.integers(0, rows - 1), min_size=9, max_size=9))) for _ in range(2))
    near = np.zeros((rows, rows), bool)
    near[one, other] = near[other, one] = True
    order = sorted(range(rows), key=lambda row: (generation[row], -pixels[row], row))
    expected = all_pairs.representatives(near, generation, order)
    link = one != other
    one, other = one[link], other[link]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("producer.clusters._PAIRS", draw.draw(st.integers(0, 5)))
        patch.setattr("producer.scratch.PIECE", draw.draw(st.integers(1, 9)))
        blocks = zip(np.array_split(one, 3), np.array_split(other, 3), strict=True)
        assert representatives(blocks, age(generation, pixels)).tolist() == expected


@pytest.mark.parametrize("rows", [0, 1])
def test_nothing_and_one_sample_alone_have_no_duplicates(rows: int) -> None:
    alone = facts([1] * rows, [5] * rows)
    near, exact = NearDuplicate(NearDuplicateConfig()).cluster(alone), ExactDuplicate().cluster(alone)
    assert near.representative.tolist() == exact.representative.tolist() == list(range(rows))
    assert np.isnan(near.score).all() and not exact.score.any()


def test_of_exact_duplicates_the_first_by_key_is_kept() -> None:
    found = ExactDuplicate().cluster(facts([1] * 4, [0] * 4, [7, 8, 7, 7]))
    assert found.representative.tolist() == [0, 1, 0, 0]
    assert found.score.tolist() == [2, 0, 2, 2]
    assert found.reason == "the same bytes as"
