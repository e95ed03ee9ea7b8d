"""A recipe takes what it says from an index, and accounts for the rest."""

import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from producer.api.bucket import ASPECTS, Bucket, bucket, nearest
from producer.recipe import RecipeConfig, RecipeError, Selection, Threshold, select
from tests.unit.producer.rows import table


def used(selection: Selection, split: str = "raw") -> np.ndarray:
    """Row numbers that train with a split."""
    return np.flatnonzero((selection.tokens[selection.splits.index(split)] >= 0) & ~selection.held_out)


def caption(split: str, tokens: int) -> dict[str, object]:
    return {"split": split, "text": "x", "tokens": tokens, "kept": True, "reason": ""}


def test_everything_kept_is_used_and_counted() -> None:
    rows = table(50, kept=np.arange(50) % 10 != 3)
    found = select(rows, RecipeConfig())
    assert found.counts == {"raw": {"used": 45, "not kept by curation": 5}}
    assert used(found).tolist() == [row for row in range(50) if row % 10 != 3]


def test_thresholds_bound_the_stored_scores_on_both_sides() -> None:
    scores: list[float | None] = [1.0, 2.0, 3.0, 4.0, 5.0, None, float("nan"), 3.5]
    found = select(
        table(8, **{"score.aesthetic": scores}), RecipeConfig(thresholds={"aesthetic": Threshold(min=2.0, max=4.0)})
    )
    assert used(found).tolist() == [1, 2, 3, 7]
    assert found.counts["raw"] == {
        "used": 4,
        "aesthetic not judged": 2,
        "aesthetic below 2": 1,
        "aesthetic above 4": 1,
    }


def test_a_threshold_of_an_unknown_operator_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"recipe\.thresholds\.astetic: no such operator .* did you mean aesthetic"):
        select(table(5), RecipeConfig(thresholds={"astetic": Threshold(min=1.0)}))
    with pytest.raises(RecipeError, match=r"it has \['aesthetic'\]"):
        select(table(5), RecipeConfig(thresholds={"zzz": Threshold(min=1.0)}))


@given(st.lists(st.tuples(st.integers(16, 6000), st.integers(16, 6000)), min_size=1, max_size=50))
def test_every_picture_goes_to_the_bucket_of_the_nearest_shape(sizes: list[tuple[int, int]]) -> None:
    heights, widths = zip(*sizes, strict=True)
    recipe = RecipeConfig(resolutions=(640,), min_fill=1e-9)
    rows = table(len(sizes), height=heights, width=widths)
    found = select(rows, recipe)
    for row, (height, width) in enumerate(sizes):
        assert found.buckets[found.bucket[row]] == nearest(height, width, found.buckets)


def test_a_picture_goes_to_the_largest_resolution_that_it_fills() -> None:
    square = [200, 230, 256, 300, 600, 640, 1327, 1400]
    rows = table(len(square), height=square, width=square)
    found = select(rows, RecipeConfig(resolutions=(640, 256, 1328), aspects=("1:1",), min_fill=0.99))
    sides = [found.buckets[b].height if b >= 0 else 0 for b in found.bucket]
    assert sides == [0, 0, 256, 256, 256, 640, 1328, 1328]
    assert found.counts["raw"] == {"used": 6, "too small for every bucket": 2}


def test_the_scarcer_side_decides_how_far_a_picture_is_enlarged() -> None:
    # 128 rows must become 256 whatever the width: a quarter of the bucket's pixels are the picture's own.
    rows = table(1, height=[128], width=[256])
    recipe = RecipeConfig(aspects=("1:1",), min_fill=0.25)
    assert len(used(select(rows, recipe))) == 1
    with pytest.raises(RecipeError, match="too small for every bucket': 1"):
        select(rows, recipe.model_copy(update={"min_fill": 0.26}))


def test_unreadable_pictures_fill_no_bucket() -> None:
    found = select(table(3, height=[0, 300, 300], width=[0, 300, 0]), RecipeConfig(aspects=("1:1",), min_fill=0.1))
    assert used(found).tolist() == [1]


def test_each_split_takes_the_rows_that_have_its_caption() -> None:
    captions = [
        [caption("raw", 10), caption("recaption", 200)],
        [caption("raw", 20)],
        [caption("recaption", 300), caption("raw", 999)],
        [],
        [caption("other", 5)],
        [caption("raw", 30), caption("raw", 31)],
    ]
    recipe = RecipeConfig(splits={"raw": 1.0, "recaption": 3.0}, max_text_tokens=250)
    found = select(table(6, captions=captions), recipe)
    assert used(found, "raw").tolist() == [0, 1, 5]
    assert used(found, "recaption").tolist() == [0]
    assert found.tokens[0].tolist() == [10, 20, -1, -1, -1, 30]
    assert found.counts["raw"] == {"used": 3, "no such caption": 2, "caption above 250 tokens": 1}
    assert found.counts["recaption"] == {"used": 1, "no such caption": 4, "caption above 250 tokens": 1}


def test_scores_of_captions_stay_with_their_captions_where_a_row_has_none() -> None:
    """Of a row that an operator failed on there is no list; of one that is off there is no list at all."""
    captions = [[caption("fused", 9), caption("raw", 10)] for _ in range(5)]
    scores = [[0.0, 9.0], None, [0.0, 2.0], [9.0, 0.0], [0.0, 9.0]]
    rows = table(5, captions=captions, kept=np.arange(5) != 1)
    for chunks in ([scores], [scores[:2], scores[2:]]):
        column = pa.chunked_array([pa.array(one, pa.list_(pa.float64())) for one in chunks])
        judged = rows.append_column("score.alike", column)
        found = select(judged, RecipeConfig(thresholds={"alike": Threshold(min=1.0)}))
        assert used(found).tolist() == [0, 2, 4]
    off = rows.append_column("score.alike", pa.array([None] * 5, pa.list_(pa.float64())))
    found = select(off, RecipeConfig(thresholds={"alike": Threshold(min=1.0)}))
    assert used(found).tolist() == [0, 2, 3, 4], "what judges nothing bounds nothing"


def test_a_table_in_pieces_selects_like_a_whole_one() -> None:
    whole = table(300, splits=("raw", "fused"))
    pieces = pa.concat_tables([whole.slice(0, 7), whole.slice(7, 0), whole.slice(7, 200), whole.slice(207)])
    assert pieces["captions"].num_chunks > 1
    recipe = RecipeConfig(splits={"raw": 1.0, "fused": 1.0}, validation_share=0.2)
    a, b = select(whole, recipe), select(pieces, recipe)
    assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.bucket, b.bucket)
    assert np.array_equal(a.held_out, b.held_out) and np.array_equal(a.validation, b.validation)


def test_a_number_of_clusters_is_held_out_whole_and_validated_once_each() -> None:
    clusters = [f"c{row // 3}" for row in range(90)]
    found = select(table(90, cluster=clusters), RecipeConfig(validation_samples=7))
    held = {clusters[row] for row in np.flatnonzero(found.held_out)}
    assert len(held) == 7 and found.held_out.sum() == 21
    assert sorted(clusters[row] for row in found.validation) == sorted(held)
    assert not held & {clusters[row] for row in used(found)}
    assert found.counts["raw"] == {"used": 69, "held out for validation": 21}


def test_a_share_of_the_clusters_is_held_out() -> None:
    found = select(table(4000), RecipeConfig(validation_share=0.1))
    assert len(found.validation) == pytest.approx(400, rel=0.15)


@pytest.mark.parametrize("held_out", [{"validation_samples": 40}, {"validation_share": 0.1}])
def test_an_index_that_grows_never_validates_on_what_was_trained(held_out: dict[str, object]) -> None:
    recipe = RecipeConfig(**held_out)
    large = table(2000, seed=3)
    # Rows keep their keys while others come in between: the first generation is every third row.
    first = np.arange(0, 2000, 3)
    small = select(large.take(first), recipe)
    trained = set(first[used(small)].tolist())
    assert trained.isdisjoint(select(large, recipe).validation.tolist())


def test_a_share_is_held_out_alike_under_stricter_thresholds() -> None:
    rows = table(3000)
    loose = select(rows, RecipeConfig(validation_share=0.1))
    strict = select(rows, RecipeConfig(validation_share=0.1, thresholds={"aesthetic": Threshold(min=6.0)}))
    assert set(strict.validation.tolist()) < set(loose.validation.tolist())


def test_holding_out_everything_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"recipe\.validation_samples: 20 of 20 usable"):
        select(table(20), RecipeConfig(validation_samples=20))


def test_a_split_that_nothing_has_is_refused_with_the_counts() -> None:
    with pytest.raises(RecipeError, match=r"recipe\.splits\.fused: leaves nothing .*'no such caption': 20"):
        select(table(20), RecipeConfig(splits={"raw": 1.0, "fused": 1.0}))
    with pytest.raises(RecipeError, match=r"recipe\.splits\.raw: leaves nothing"):
        select(table(0), RecipeConfig())


@given(
    rows=st.integers(1, 200),
    low=st.floats(0, 9),
    longest=st.integers(50, 400),
    share=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 5),
)
def test_every_row_has_one_outcome_in_every_split(rows: int, low: float, longest: int, share: float, seed: int) -> None:
    recipe = RecipeConfig(
        resolutions=(640, 1328),
        thresholds={"aesthetic": Threshold(min=low)},
        splits={"raw": 1.0, "fused": 2.0},
        max_text_tokens=longest,
        validation_share=share,
    )
    try:
        found = select(table(rows, seed=seed, splits=("fused", "raw")), recipe)
    except RecipeError:
        return
    for split in ("raw", "fused"):
        assert sum(found.counts[split].values()) == rows
        assert found.counts[split]["used"] == len(used(found, split))
        tokens = found.tokens[found.splits.index(split)]
        assert tokens.max() <= longest and (found.bucket[tokens >= 0] >= 0).all()


def test_small_sizes_may_give_two_aspects_one_bucket() -> None:
    assert RecipeConfig(aspects=("1:1", "3:4", "4:5")).buckets(32) == [Bucket(32, 32)]
    found = RecipeConfig(aspects=ASPECTS).buckets(32)
    assert len(found) == len(set(found)) < len(ASPECTS)
    assert found[0] == bucket(32, "1:1")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resolutions": ()}, r"recipe\.resolutions: \[\]"),
        ({"resolutions": (8,)}, r"recipe\.resolutions: \[8\]"),
        ({"aspects": ("3:2", "3x2", "0:1")}, r"recipe\.aspects: \['3x2', '0:1'\]"),
        ({"aspects": ()}, r"recipe\.aspects: none"),
        ({"splits": {}}, r"recipe\.splits: {}"),
        ({"splits": {"raw": 0.0}}, "a positive weight"),
        ({"validation_samples": 3, "validation_share": 0.1}, "are both set"),
        ({"thresholds": {"a": {}}}, "neither min nor max"),
        ({"thresholds": {"a": {"min": 2.0, "max": 1.0}}}, "no score can pass"),
        ({"units": 0}, "units"),
        ({"samples": 0}, "samples"),
        ({"validation_share": 1.0}, "validation_share"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RecipeConfig(**settings)


def test_a_hundred_thousand_rows_are_selected_in_well_under_a_second() -> None:
    rows = table(100_000, splits=("raw", "fused"))
    recipe = RecipeConfig(resolutions=(256, 640), splits={"raw": 1.0, "fused": 1.0}, validation_share=0.01)
    start = time.process_time()
    select(rows, recipe)
    assert time.process_time() - start < 1.0
