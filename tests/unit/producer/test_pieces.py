"""What compares the whole set finds the same in pieces of any size, in mapped files, and takes the same memory."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from producer.clusters import Age
from producer.forest import Forest
from producer.minhash import WIDTH, alike
from producer.neighbours import Hashes, near_pairs
from producer.operator.caption_duplicate import CaptionDuplicate, CaptionDuplicateConfig
from producer.operator.exact_duplicate import ExactDuplicate
from producer.operator.judgement import Facts
from producer.operator.near_duplicate import NearDuplicate, NearDuplicateConfig
from producer.ordering import grouped, ordered, places, real, signed
from producer.scratch import Space
from tests.unit.producer.all_pairs import clusters


@contextmanager
def working_on(rows: int, **changes: int) -> Iterator[None]:
    """So many `rows` at a time, every array in a file; `changes` are of producer.neighbours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("producer.scratch.PIECE", rows)
        patch.setattr("producer.scratch._SMALL", 0)
        patch.setattr("producer.clusters._PAIRS", rows)
        patch.setattr("producer.minhash._PAIRS", rows)
        for name, value in ({"_PART": rows} | changes).items():
            patch.setattr(f"producer.neighbours.{name}", value)
        yield


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Space:
    return Space(tmp_path_factory.mktemp("scratch"))


SIZES = st.integers(1, 9)
FEW = st.integers(0, 30)
REAL = st.sampled_from([-np.inf, -2.5, -1e-300, -0.0, 0.0, 1e-300, 7.0, 7.5, np.inf, np.nan])
SIGNED = st.sampled_from([-(2**63), -256, -1, 0, 1, 255, 256, 2**63 - 1])


@settings(max_examples=50)
@given(st.data(), FEW, SIZES)
def test_rows_are_ordered_as_by_lexsort_and_grouped_by_their_first_words(
    space: Space, draw: st.DataObject, number: int, rows: int
) -> None:
    one, other = (draw.draw(arrays(kind, number, elements=of)) for kind, of in ((np.int64, SIGNED), (float, REAL)))
    with working_on(rows):
        found = ordered(number, lambda part: signed(one[part]), lambda part: ~real(other[part]), space=space)
        begins = [begin for _, begin in grouped(found, 1)]
    order = places(found, slice(None))
    assert np.array_equal(order, np.lexsort((-np.where(np.isnan(other), -np.inf, other), one)))
    first = np.concatenate(begins) if begins else order
    assert np.array_equal(first, np.searchsorted(one[order], one[order]))


@settings(max_examples=50)
@given(st.data(), st.integers(1, 30), SIZES)
def test_trees_are_what_links_join_and_their_roots_the_smallest(
    space: Space, draw: st.DataObject, number: int, rows: int
) -> None:
    near = np.zeros((number, number), bool)
    with working_on(rows):
        whole, other = Forest(number, space), Forest(number, space)
        for forest in (whole, other, whole, other):
            ends = draw.draw(arrays(np.int64, (2, draw.draw(SIZES)), elements=st.integers(0, number - 1)))
            near[ends[0], ends[1]] = near[ends[1], ends[0]] = True
            forest.join(*ends)
        whole.add(other)
        roots = whole.roots(np.arange(number))
    assert roots.tolist() == [min(group) for group in clusters(near)]


def pair_set(hashes: Hashes, radius: int, space: Space) -> set[tuple[int, int, int]]:
    found = [np.stack([pairs.one, pairs.other, pairs.bits]).T for pairs in near_pairs(hashes, radius, space)]
    return {(min(one, other), max(one, other), bits) for rows in found for one, other, bits in rows.tolist()}


@st.composite
def crowded(draw: st.DrawFn) -> Hashes:
    """Hashes of which many share pieces, and some are equal."""
    number = draw(st.integers(0, 40))
    word = st.integers(0, 3).map(lambda bits: bits * 0x1001) | st.integers(0, 2**64 - 1)
    return Hashes(*(draw(arrays(np.uint64, number, elements=word)) for _ in range(4)))


@settings(max_examples=25, deadline=None)
@given(crowded(), st.integers(0, 3), SIZES, st.integers(2, 5))
def test_in_crowds_too_near_pairs_are_the_same_in_pieces_of_any_size(
    space: Space, hashes: Hashes, radius: int, rows: int, crowd: int
) -> None:
    few = {"_CROWD": crowd, "_LEADERS": 2, "_NEIGHBOURS": 2}
    with working_on(1000, **few):
        expected = pair_set(hashes, radius, Space())
    with working_on(rows, **few):
        assert pair_set(hashes, radius, space) == expected


@st.composite
def sketched(draw: st.DrawFn) -> np.ndarray:
    """Sketches of which many bands are equal."""
    kinds = draw(arrays(np.uint32, (3, WIDTH), elements=st.integers(0, 2**32 - 1)))
    which = draw(arrays(np.int64, (draw(FEW), WIDTH // 4), elements=st.integers(0, 2)))
    return kinds[np.repeat(which, 4, axis=1), np.arange(WIDTH)]


def meeting(sketches: np.ndarray, similarity: float) -> set[tuple[int, int]]:
    """Each caption with the first and the last before it that shares a band, where they are alike: the plain twin."""
    found = set()
    for band in range(0, WIDTH, 4):
        for row, mine in enumerate(sketches):
            same = [at for at in range(row) if (sketches[at, band : band + 4] == mine[band : band + 4]).all()]
            found |= {(at, row) for at in {*same[:1], *same[-1:]} if (sketches[at] == mine).mean() >= similarity}
    return found


@settings(max_examples=25, deadline=None)
@given(sketched(), st.data(), SIZES)
def test_captions_meet_and_are_counted_as_by_the_plain_twin(
    space: Space, sketches: np.ndarray, draw: st.DataObject, rows: int
) -> None:
    number = len(sketches)
    generation = draw.draw(arrays(np.int64, number, elements=st.integers(1, 3)))
    expected = meeting(sketches, 0.5)
    with working_on(rows):
        blocks = list(alike(sketches, 0.5, space))
        operator = CaptionDuplicate(CaptionDuplicateConfig(similarity=0.5, max=2))
        said = operator.crowds(sketches, generation, space)
    assert {pair for block in blocks for pair in zip(*(side.tolist() for side in block), strict=True)} == expected
    near = np.zeros((number, number), bool)
    for one, other in expected:
        near[one, other] = near[other, one] = True
    groups = clusters(near)
    assert said.score.tolist() == [len(group) for group in groups]
    oldest = [sorted(group, key=lambda row: (generation[row], row))[:2] for group in groups]
    assert said.kept.tolist() == [row in oldest[row] for row in range(number)]


@settings(max_examples=50)
@given(st.data(), FEW, SIZES)
def test_exact_duplicates_are_those_of_equal_bytes_the_oldest_and_best_kept(
    space: Space, draw: st.DataObject, number: int, rows: int
) -> None:
    sha256 = draw.draw(arrays(np.uint64, (number, 2), elements=st.integers(0, 1) | st.integers(2**64 - 2, 2**64 - 1)))
    generation, pixels = (draw.draw(arrays(np.int64, number, elements=st.integers(1, 3))) for _ in range(2))
    clarity = draw.draw(arrays(float, number, elements=REAL))
    none = np.zeros(number, np.uint64)
    with working_on(rows):
        found = ExactDuplicate().cluster(Facts(Age(generation, pixels, clarity), sha256, Hashes(*[none] * 4), space))
    value = np.where(np.isnan(clarity), -np.inf, clarity)
    for row in range(number):
        same = np.flatnonzero((sha256 == sha256[row]).all(axis=1)).tolist()
        best = min(same, key=lambda one: (generation[one], -pixels[one], -value[one], one))
        assert (found.representative[row], found.score[row]) == (best, len(same) - 1)


def made_up(number: int) -> tuple[Facts, np.ndarray]:
    """Facts, and sketches of captions: a third are copies, a sixth of one picture, two generations."""
    draw = np.random.default_rng(0)
    of = np.arange(number)
    of[: number // 3] += number // 3
    of[: number // 6] = number - 1
    hashes = draw.integers(0, 2**64, (4, number), np.uint64)[:, of]
    hashes[:, : number // 3] ^= np.uint64(1) << draw.integers(0, 64, (4, number // 3), np.uint64)
    age = Age(1 + of % 2, draw.integers(1, 9, number), draw.random(number))
    return Facts(age, hashes.T[:, :2].copy(), Hashes(*hashes)), draw.integers(0, 2**32, (number, WIDTH), np.uint32)[of]


def traced(run: Callable[[], object]) -> int:
    """Bytes allocated at most while `run` runs, those of mapped files aside."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["exact", "near", "captions"])
def test_arrays_as_long_as_the_set_are_in_files(name: str, tmp_path: Path) -> None:
    found = []
    for number in (3_000, 12_000):
        facts, sketches = made_up(number)
        facts = Facts(facts.age, facts.sha256, facts.hashes, Space(tmp_path))
        runs: dict[str, Callable[[], object]] = {
            "exact": lambda facts=facts: ExactDuplicate().cluster(facts),
            "near": lambda facts=facts: NearDuplicate(NearDuplicateConfig(radius=1)).cluster(facts),
            "captions": lambda facts=facts, sketches=sketches: CaptionDuplicate(CaptionDuplicateConfig()).crowds(
                sketches, facts.age.generation, facts.space
            ),
        }
        with working_on(1_000, _CROWD=100):
            found.append(traced(runs[name]))
    few, many = found
    # At once it would be 100 bytes and more for each of 9,000 rows.
    assert many < few + 200_000
