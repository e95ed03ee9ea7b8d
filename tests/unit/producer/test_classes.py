"""A mixture by class: what tags sort rows into, at the weights of a recipe, with everything a plan promises."""

import hashlib
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from producer.classes import ClassError
from producer.cost import CostModel
from producer.journal import Line, from_text, successor, to_text
from producer.plan import Plan, Terms
from producer.recipe import RecipeConfig, RecipeError, Threshold, select
from tests.unit.producer.fixed import content, fixed_plan
from tests.unit.producer.rows import table

COST = CostModel(40, 2)
SCRIPTS, DOMAINS = ("english", "chinese", "none", ""), ("nature", "design", "people", "synthetic")
WEIGHTS = {"script": {"english": 2.0, "chinese": 3.0, "none": 5.0}, "domain": {"nature": 55.0, "design": 27.0}}
BASE = RecipeConfig(units=4, samples=4, min_fill=0.05, aspects=("1:1",))


@cache
def tagged(rows: int, splits: tuple[str, ...] = ("raw",), least: int = 600) -> pa.Table:
    """Photographs with two tags, each value of which has rows, some of them rare."""
    draw = np.random.default_rng(rows)
    found = table(rows, splits=splits, side=(least, 1400))
    for name, values, odds in (("script", SCRIPTS, [0.3, 0.1, 0.5, 0.1]), ("domain", DOMAINS, [0.5, 0.3, 0.1, 0.1])):
        drawn = np.asarray(values)[draw.choice(len(values), rows, p=odds)]
        found = found.append_column(f"tag.{name}", pa.array(drawn, pa.string()))
    return found


def tags(found: pa.Table, name: str) -> np.ndarray:
    return np.asarray(found[f"tag.{name}"].to_pylist())


def test_rows_of_a_value_without_weight_are_left_out_and_counted_with_it() -> None:
    rows = tagged(400)
    found = select(rows, RecipeConfig(classes=WEIGHTS))
    script, domain = tags(rows, "script"), tags(rows, "domain")
    people, synthetic = (np.sum(domain == name) for name in ("people", "synthetic"))
    assert found.counts["raw"] == {
        "used": np.sum((script != "") & np.isin(domain, ["nature", "design"])),
        f"domain {'people' if people >= synthetic else 'synthetic'}, which recipe.classes gives no weight": max(
            people, synthetic
        ),
        f"domain {'people' if people < synthetic else 'synthetic'}, which recipe.classes gives no weight": min(
            people, synthetic
        ),
        "script not known, which recipe.classes gives no weight": np.sum(
            (script == "") & np.isin(domain, ["nature", "design"])
        ),
    }
    assert found.classes is not None and found.classes.names[0] == ("domain=design", "script=chinese")
    assert found.classes.weight[0] == 27.0 * 3.0
    for row in range(400):
        name = found.classes.names[found.classes.row[row]] if found.classes.row[row] >= 0 else ()
        weighed = domain[row] in WEIGHTS["domain"] and script[row] in WEIGHTS["script"]
        assert name == ((f"domain={domain[row]}", f"script={script[row]}") if weighed else ())


def test_many_values_without_weight_are_counted_together_beyond_the_most_frequent() -> None:
    words = [f"word-{row * row % 61:02d}" for row in range(200)]
    rows = table(200).append_column("tag.taxonomy", pa.array(words))
    counts = select(rows, RecipeConfig(classes={"taxonomy": {"word-00": 1.0}})).counts["raw"]
    assert len(counts) == 1 + 8 + 1 and sum(counts.values()) == 200
    others = len(set(words)) - 1 - 8
    assert f"taxonomy of {others} other values, which recipe.classes gives no weight" in counts


def test_the_source_is_a_tag_and_nulls_are_not_known() -> None:
    rows = table(30, source=["photos", "posters", "slides"] * 10).append_column("tag.script", pa.nulls(30, pa.string()))
    found = select(rows, RecipeConfig(classes={"source": {"photos": 1.0, "posters": 1.0}}))
    assert found.counts["raw"] == {"used": 20, "source slides, which recipe.classes gives no weight": 10}
    with pytest.raises(RecipeError, match=r"script not known, which recipe\.classes gives no weight': 30"):
        select(rows, RecipeConfig(classes={"script": {"english": 1.0}}))


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({"scrpt": {"english": 1.0}}, r"recipe\.classes\.scrpt: no such tag in the index; did you mean script\?"),
        ({"x": {"english": 1.0}}, r"recipe\.classes\.x: .* it has \['source', 'script', 'domain'\]"),
        (
            {"script": {"english": 1.0, "chinees": 1.0}},
            r"recipe\.classes\.script\.chinees: leaves nothing to train on .* did you mean chinese\?",
        ),
        ({"script": {"english": 1.0, "1": 1.0}}, r"their script is one of \['', 'chinese', 'english', 'none'\]"),
    ],
)
def test_an_unknown_tag_or_value_names_what_there_is(classes: dict[str, dict[str, float]], said: str) -> None:
    with pytest.raises(ClassError, match=said):
        select(tagged(400), RecipeConfig(classes=classes))


def test_a_value_whose_rows_are_all_left_out_otherwise_is_refused() -> None:
    rows = tagged(400)
    judged = np.where(tags(rows, "script") == "chinese", 1.0, 9.0)
    rows = rows.set_column(rows.schema.get_field_index("score.aesthetic"), "score.aesthetic", pa.array(judged))
    recipe = RecipeConfig(classes=WEIGHTS, thresholds={"aesthetic": Threshold(min=5.0)})
    with pytest.raises(ClassError, match=r"recipe\.classes\.script\.chinese: .* left out otherwise"):
        select(rows, recipe)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({"script": {}}, r"recipe\.classes\.script: \{\}; name at least one value"),
        ({"script": {"english": -1.0}}, "give each a weight"),
        ({"script": {"english": float("nan")}}, "give each a weight"),
        (
            {name: {str(value): 1.0 for value in range(20)} for name in ("a", "b", "c")},
            r"recipe\.classes: 8000 combinations of a, b, c; at most 4096",
        ),
    ],
)
def test_classes_that_make_no_sense_are_refused(classes: dict[str, dict[str, float]], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RecipeConfig(classes=classes)


def test_a_weight_of_nothing_takes_a_value_or_a_tag_out_of_a_recipe_that_another_extends() -> None:
    zeros = {"script": {"english": 1.0, "none": 0.0}, "domain": {"nature": 0.0, "people": 0.0}}
    assert RecipeConfig(classes=zeros) == RecipeConfig(classes={"script": {"english": 1.0}})


def test_more_streams_than_a_plan_mixes_are_refused() -> None:
    words = [str(row % 600) for row in range(1800)]
    recipe = RecipeConfig(classes={"taxonomy": dict.fromkeys(words, 1.0)}, min_fill=0.05)
    with pytest.raises(RecipeError, match=r"recipe\.classes: 600 classes that have rows make 600 streams of a split"):
        Plan("index", table(1800).append_column("tag.taxonomy", pa.array(words)), recipe, seed=1, cost=COST)


def test_many_classes_in_many_buckets_keep_their_rows_apart() -> None:
    words = [f"{row % 480:03d}" for row in range(1440)]
    recipe = RecipeConfig(
        classes={"taxonomy": dict.fromkeys(words, 1.0)}, resolutions=(256, 320, 384, 448), min_fill=0.05, samples=1
    )
    rows = table(1440, side=(200, 300)).append_column("tag.taxonomy", pa.array(words))
    plan = Plan("index", rows, recipe, seed=1, cost=COST)
    assert len(plan.selection.buckets) * 480 * 2 > 2**15, "more cells than 16 bits hold"
    entry = plan.entry(0)
    for number, group in enumerate(entry.groups):
        mine = entry.rows[entry.starts[number] : entry.starts[number + 1]].tolist()
        assert {f"taxonomy={words[row]}" for row in mine} == set(group.kind)
        assert {plan.selection.buckets[plan.selection.bucket[row]] for row in mine} == {group.bucket}
    assert sorted(entry.rows.tolist()) == list(range(1440))


def of_group(plan: Plan, rows: pa.Table) -> dict[tuple[str, tuple[str, ...], str], set[int]]:
    """Which rows train in each split, class and bucket."""
    chosen, found = plan.selection, {}
    script, domain = tags(rows, "script"), tags(rows, "domain")
    for number, split in enumerate(chosen.splits):
        for row in np.flatnonzero((chosen.tokens[number] >= 0) & ~chosen.held_out).tolist():
            kind = f"domain={domain[row]}", f"script={script[row]}"
            found.setdefault((split, kind, str(chosen.buckets[chosen.bucket[row]])), set()).add(row)
    return found


@settings(max_examples=6, deadline=None)
@given(rows=st.sampled_from([60, 150]), samples=st.integers(1, 9), units=st.integers(1, 6), both=st.booleans())
def test_every_sample_of_a_class_comes_once_in_each_pass_of_its_group(
    rows: int, samples: int, units: int, both: bool
) -> None:
    splits = {"raw": 0.3, "fused": 0.7} if both else {"raw": 1.0}
    recipe = RecipeConfig(
        units=units, samples=samples, min_fill=0.05, splits=splits, classes=WEIGHTS, aspects=("1:1", "3:2")
    )
    source = tagged(rows, tuple(splits))
    plan = Plan("index", source, recipe, seed=1, cost=COST)
    groups, entry = of_group(plan, source), plan.entry(0)
    assert {(group.split, group.kind, str(group.bucket)) for group in entry.groups} == set(groups)
    seen = {name: Counter[int]() for name in groups}
    for step in range(40):
        for unit in plan.step(step):
            name = unit.split, unit.kind, str(unit.bucket)
            assert set(unit.rows.tolist()) <= groups[name]
            if len(groups[name]) >= samples:
                assert len(set(unit.rows.tolist())) == samples
            seen[name].update(unit.rows.tolist())
        used, lanes = entry.used(step + 1).tolist(), entry.lanes.tolist()
        for number, group in enumerate(entry.groups):
            name = group.split, group.kind, str(group.bucket)
            counts = [seen[name][row] for row in groups[name]]
            assert sum(counts) == used[number] * samples
            assert max(counts) - min(counts) <= (1 if used[number] % lanes[number] == 0 else 2)


def test_streams_splits_and_values_are_within_a_point_in_any_ten_thousand_samples() -> None:
    splits = {"raw": 0.5, "recaption": 0.3, "fused": 0.2}
    weights = {
        "script": {"english": 0.3, "chinese": 0.2, "none": 0.4, "": 0.1},
        "domain": {"nature": 0.55, "design": 0.27, "people": 0.13, "synthetic": 0.05},
    }
    recipe = RecipeConfig(splits=splits, classes=weights, resolutions=(256, 640), min_fill=0.9, units=64, samples=16)
    plan = Plan("index", tagged(6000, tuple(splits), 300), recipe, seed=1, cost=COST)
    streams = [
        (split, (f"domain={domain}", f"script={script}"))
        for split, domain, script in product(splits, weights["domain"], weights["script"])
    ]
    wanted = np.asarray(
        [a * b * c for a, b, c in product(splits.values(), weights["domain"].values(), weights["script"].values())]
    )
    steps = 150
    handed = np.zeros((steps, len(streams)))
    for step in range(steps):
        for unit in plan.step(step):
            handed[step, streams.index((unit.split, unit.kind))] += len(unit.rows)
    sums = np.concatenate([np.zeros((1, len(streams))), np.cumsum(handed, axis=0)])
    ends = np.searchsorted(sums.sum(axis=1), sums.sum(axis=1) + 10_000)
    shares = np.asarray([(sums[e] - sums[s]) / (sums[e] - sums[s]).sum() for s, e in enumerate(ends) if e <= steps])
    assert len(shares) > 20
    assert np.abs(shares - wanted).max() < 0.01
    cube, aim = shares.reshape(len(shares), 3, 4, 4), wanted.reshape(3, 4, 4)
    for axis in range(3):
        rest = tuple(other for other in range(3) if other != axis)
        apart = cube.sum(axis=tuple(other + 1 for other in rest)) - aim.sum(axis=rest)
        assert np.abs(apart).max() < 0.01
    planned = plan.entry(0).mixture()
    assert planned == pytest.approx(
        {(s, "t2i", k): w for (s, k), w in zip(streams, wanted.tolist(), strict=True)}, abs=2e-3
    )


def test_a_class_that_a_split_has_no_rows_of_leaves_its_share_to_the_others() -> None:
    captions = [
        [{"split": "raw", "text": "", "tokens": 9, "kept": True, "reason": ""}]
        + [{"split": "fused", "text": "", "tokens": 9, "kept": True, "reason": ""}] * (row % 2)
        for row in range(200)
    ]
    rows = _captioned(captions).append_column(
        "tag.script", pa.array([("chinese", "english")[row % 2] for row in range(200)])
    )
    recipe = RecipeConfig(
        splits={"raw": 1.0, "fused": 1.0}, classes={"script": {"english": 1.0, "chinese": 2.0}}, min_fill=0.05
    )
    plan = Plan("index", rows, recipe, seed=1, cost=COST)
    assert plan.entry(0).mixture() == pytest.approx(
        {
            ("raw", "t2i", ("script=chinese",)): 0.5,
            ("raw", "t2i", ("script=english",)): 0.25,
            ("fused", "t2i", ("script=english",)): 0.25,
        },
        abs=1e-3,
    )
    assert plan.entry(0).shares() == pytest.approx(
        {"raw": 0.75, "fused": 0.25, "t2i": 1.0, "script=chinese": 0.5, "script=english": 0.5}, abs=1e-3
    )
    assert any(name.startswith("raw script=chinese ") for name in plan.passes(3))


def _captioned(captions: list[list[dict[str, object]]]) -> pa.Table:
    names = [field.name for field in table(1).schema.field("captions").type.value_type]
    return table(len(captions), captions=[[{name: one[name] for name in names} for one in row] for row in captions])


def test_the_order_of_tags_and_values_in_the_recipe_changes_nothing() -> None:
    back = {tag: dict(reversed(values.items())) for tag, values in reversed(WEIGHTS.items())}
    one, two = (
        Plan("index", tagged(400), RecipeConfig(classes=classes, min_fill=0.05), seed=1, cost=COST)
        for classes in (WEIGHTS, back)
    )
    assert one.id == two.id
    assert [content(one.step(step)) for step in range(5)] == [content(two.step(step)) for step in range(5)]


class Run:
    """A plan over a journal and what it handed out: split and row of every sample."""

    def __init__(self, recipe: RecipeConfig) -> None:
        self.rows = tagged(2700, ("raw", "fused"))
        self.plan = Plan("rows", self.rows, recipe, seed=1, cost=COST)
        self.lines = [Line(0, 0, self.plan.id, "", recipe.units, self.terms(recipe).body())]
        self.step, self.handed = 0, list[tuple[str, int]]()

    def terms(self, recipe: RecipeConfig, cursors: str = "") -> Terms:
        return Terms(recipe=recipe, index=Path("index"), generation="gen-00001", index_id="rows", cursors=cursors)

    def go(self, steps: int) -> list[tuple[str, int]]:
        begin = len(self.handed)
        for _ in range(steps):
            self.handed += [(unit.split, row) for unit in self.plan.step(self.step) for row in unit.rows.tolist()]
            self.step += 1
        return self.handed[begin:]

    def switch(self, recipe: RecipeConfig) -> None:
        terms = self.terms(recipe, self.plan.cursors(self.step))
        line = successor(self.lines[-1], self.step, recipe.units, terms.body())
        self.plan.extend(line.id, self.step, terms, "rows", self.rows)
        self.lines.append(line)

    def replayed(self) -> Plan:
        lines = [from_text(to_text(line)) for line in self.lines]
        plan = Plan("rows", self.rows, Terms.of(lines[0].body).recipe, seed=1, cost=COST)
        for line in lines[1:]:
            plan.extend(line.id, line.from_step, Terms.of(line.body), "rows", self.rows)
        return plan


recipes = st.builds(
    lambda splits, low, classes: BASE.model_copy(
        update={"splits": splits, "thresholds": {"aesthetic": Threshold(min=low)} if low else {}, "classes": classes}
    ),
    st.sampled_from([{"raw": 1.0}, {"raw": 0.3, "fused": 0.7}]),
    st.sampled_from([0.0, 3.0]),
    st.sampled_from([{}, WEIGHTS, {"script": {"none": 1.0, "english": 1.0}}, {"domain": dict.fromkeys(DOMAINS, 1.0)}]),
)


@settings(max_examples=6, deadline=None)
@given(first=recipes, switches=st.lists(st.tuples(st.integers(0, 5), recipes), min_size=1, max_size=3))
def test_no_switch_of_classes_repeats_a_sample_within_a_pass_and_the_journal_gives_the_same_steps_again(
    first: RecipeConfig, switches: list[tuple[int, RecipeConfig]]
) -> None:
    run = Run(first)
    for steps, recipe in switches:
        run.go(steps)
        run.switch(recipe)
    run.go(5)
    # A group that cannot have begun another pass, however small, gave nothing twice.
    counts, small = Counter(run.handed), _small(run)
    assert [sample for sample, count in counts.items() if count > 1 and sample not in small] == []
    again = run.replayed()
    for step in (*range(run.step), 10**6):
        assert content(again.step(step)) == content(run.plan.step(step))


def _small(run: Run) -> set[tuple[str, int]]:
    """The samples of groups that may be in their second pass by now, a stretch ahead."""
    found: set[tuple[str, int]] = set()
    ends = [*(part.entry.first_step for part in run.plan.parts[1:]), run.step]
    for part, end in zip(run.plan.parts, ends, strict=True):
        entry = part.entry
        over = entry.old + (entry.used(end) + entry.lanes) * entry.samples > entry.sizes
        for number in np.flatnonzero(over).tolist():
            rows = entry.rows[entry.starts[number] : entry.starts[number + 1]]
            found |= {(entry.groups[number].split, row) for row in rows.tolist()}
    return found


def test_a_class_left_out_for_a_while_waits_for_its_next_pass() -> None:
    only = {"script": {"none": 1.0, "english": 1.0}}
    run = Run(BASE.model_copy(update={"classes": {"script": {**only["script"], "chinese": 1.0}}}))
    early = set(run.go(12))
    script = tags(run.rows, "script")
    left_out = {sample for sample in early if script[sample[1]] == "chinese"}
    run.switch(BASE.model_copy(update={"classes": only}))
    assert left_out and set(run.plan.seen(run.step)["raw"].tolist()) == {row for _, row in early}
    assert all(script[row] != "chinese" for _, row in run.go(4))
    run.switch(BASE)
    assert not early & set(run.go(30))


def test_a_recipe_without_classes_keeps_the_plan_and_the_journal_it_always_had() -> None:
    # Another hash would make every running training's journal one of another plan: see producer.plan.ORDER.
    plan = fixed_plan()
    terms = Terms(
        recipe=plan.parts[0].recipe,
        index=Path("/index"),
        generation="gen-00001",
        index_id="fixed",
        cursors=plan.cursors(3),
    )
    line = successor(Line(0, 0, plan.id, "", 8, {}), 3, 8, terms.body())
    assert (plan.id, plan.cursors(3)) == ("4baf872cd13d2807", "1c1dd042ad625bc8")
    assert line.id == "b04f7c183976f7dd"
    assert hashlib.sha256(to_text(line).encode()).hexdigest()[:16] == "4d6b4b2f35391b4b"
    assert (
        "classes" in Terms(**{**dict(terms), "recipe": BASE.model_copy(update={"classes": WEIGHTS})}).body()["recipe"]
    )
