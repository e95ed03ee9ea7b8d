"""A plan over a journal: recipes and index generations change in mid-pass; order stays a function of the journal."""

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.api.deal import deal
from producer.cost import CostModel
from producer.journal import Journal, Line, from_text, successor, to_text
from producer.plan import Plan, PlanError, Terms
from producer.recipe import RecipeConfig, Threshold
from tests.unit.producer.fixed import content
from tests.unit.producer.rows import table

COST = CostModel(40, 2)
BASE = RecipeConfig(units=4, samples=4, min_fill=0.05, aspects=("1:1",))


@cache
def tables() -> dict[str, pa.Table]:
    """Two generations: the second has every row of the first, under other numbers, and as many again in between."""
    rows = 2700
    grown = table(rows, splits=("raw", "fused"), side=(600, 1400))
    return {"gen-00001": grown.take(pa.array(np.flatnonzero(np.arange(rows) % 3 > 0))), "gen-00002": grown}


class Run:
    """A plan, its journal, and what was handed out."""

    def __init__(self, recipe: RecipeConfig = BASE, generation: str = "gen-00001") -> None:
        self.recipe, self.generation = recipe, generation
        self.plan = Plan(generation, tables()[generation], recipe, seed=1, cost=COST)
        body = self.terms(recipe, generation).body()
        self.journal = Journal(None, Line(0, 0, self.plan.id, "", recipe.units, body))
        self.step = 0
        self.handed: list[tuple[str, str]] = []  # caption split and key of every sample, in order

    def terms(self, recipe: RecipeConfig, generation: str, **more: str) -> Terms:
        return Terms(recipe=recipe, index=Path("index"), generation=generation, index_id=generation, **more)

    def go(self, steps: int) -> list[tuple[str, str]]:
        begin = len(self.handed)
        for _ in range(steps):
            keys = self.plan.part(self.step).keys
            for unit in self.plan.step(self.step):
                assert unit.plan == self.journal.at(self.step).id
                self.handed += [(unit.split, key.as_py()) for key in keys.take(pa.array(unit.rows))]
            self.step += 1
        return self.handed[begin:]

    def switch(self, recipe: RecipeConfig, generation: str = "", passes: str = "continue", step: int = -1) -> None:
        step = self.step if step < 0 else step
        generation = generation or self.generation
        terms = self.terms(recipe, generation, passes=passes, cursors=self.plan.cursors(step))
        line = successor(self.journal.last, step, recipe.units, terms.body())
        self.plan.extend(line.id, step, terms, generation, tables()[generation])
        self.journal.append(line)
        self.generation = generation

    def replayed(self) -> Plan:
        """The plan as a worker makes it that has nothing but the journal and the index."""
        lines = [from_text(to_text(line)) for line in self.journal.lines]
        first = Terms.of(lines[0].body)
        plan = Plan(first.index_id, tables()[first.generation], first.recipe, seed=1, cost=COST)
        assert plan.id == lines[0].id
        for line in lines[1:]:
            terms = Terms.of(line.body)
            plan.extend(line.id, line.from_step, terms, terms.generation, tables()[terms.generation])
        return plan


recipes = st.builds(
    lambda splits, low, fill: BASE.model_copy(
        update={
            "splits": splits,
            "thresholds": {"aesthetic": Threshold(min=low)} if low else {},
            "resolutions": (256, 640) if fill else (256,),
        }
    ),
    st.sampled_from([{"raw": 1.0}, {"fused": 1.0}, {"raw": 0.3, "fused": 0.7}]),
    st.sampled_from([0.0, 2.0, 4.0]),
    st.booleans(),
)


@settings(max_examples=12, deadline=None)
@given(
    first=recipes,
    switches=st.lists(st.tuples(st.integers(0, 6), recipes, st.booleans()), min_size=1, max_size=4),
    far=st.integers(0, 10**7),
)
def test_no_switch_repeats_a_sample_within_a_pass_and_the_journal_gives_the_same_steps_again(
    first: RecipeConfig, switches: list[tuple[int, RecipeConfig, bool]], far: int
) -> None:
    run = Run(first)
    for steps, recipe, grow in switches:
        run.go(steps)
        before = [content(run.plan.step(step)) for step in range(run.step)]
        run.switch(recipe, "gen-00002" if grow else "")
        assert before == [content(run.plan.step(step)) for step in range(run.step)], "the past changed"
    run.go(6)
    # Too few steps for any pass to end, so nothing may come twice, whatever was left out in between.
    assert [sample for sample, count in Counter(run.handed).items() if count > 1] == []
    again = run.replayed()
    for step in (*range(run.step), far):
        units = content(run.plan.step(step))
        assert content(again.step(step)) == units
        for ranks in (1, 2, 4):
            shares = [units[unit] for rank in range(ranks) for unit in deal(BASE.units, ranks, rank)]
            assert sorted(shares, key=lambda unit: unit[0]) == units


def test_the_rest_is_the_same_from_every_one_of_three_hundred_steps() -> None:
    run = Run()
    for steps, recipe, generation in ((90, BASE, "gen-00002"), (110, BASE.model_copy(update={"samples": 3}), "")):
        run.go(steps)
        run.switch(recipe, generation)
    run.go(100)
    # Each step as the first that a new worker is asked for: nothing follows from what came before.
    again = run.replayed()
    stream = [content(run.plan.step(step)) for step in range(300)]
    assert [content(again.step(step)) for step in reversed(range(300))] == stream[::-1]
    assert len({str(units) for units in stream}) == 300


def test_a_pass_goes_on_through_a_switch_until_every_sample_was_seen_once() -> None:
    run = Run()
    run.go(30)
    run.switch(BASE, "gen-00002")
    run.go(10)
    run.switch(BASE)
    everything = {("raw", key.as_py()) for key in tables()["gen-00002"]["key"]}
    while run.plan.passes(run.step)["raw 256x256"] < 1:
        run.go(1)
    # Units of a stretch are dealt from all of it: what is missing of the pass is in the one that is open.
    [stretch] = (run.plan.entry(run.step).lanes * run.plan.entry(run.step).samples).tolist()
    assert len(everything - set(run.handed)) < stretch
    run.go(stretch // 16)
    counts = Counter(run.handed)
    assert set(counts) == everything and sum(count > 1 for count in counts.values()) <= 2 * stretch


def test_a_sample_left_out_for_a_while_comes_again_only_once_its_group_began_another_pass() -> None:
    strict = BASE.model_copy(update={"thresholds": {"aesthetic": Threshold(min=5.0)}})
    run = Run()
    early = set(run.go(20))
    run.switch(strict)
    run.go(2)
    run.switch(BASE)
    assert not early & set(run.go(40))
    run = Run()
    early = set(run.go(20))
    run.switch(strict)
    while run.plan.passes(run.step)["raw 256x256"] < 1:
        run.go(1)
    run.switch(BASE)
    open_pass = set(run.go(60))
    assert early & open_pass, "they wait for a pass that is over"


def test_a_restart_takes_every_sample_again() -> None:
    run = Run()
    early = set(run.go(40))
    run.switch(BASE, passes="restart")
    assert run.plan.seen(40)["raw"].size == 0
    assert early & set(run.go(60))


def test_new_samples_join_from_the_named_step_and_not_before() -> None:
    run = Run()
    old = {key.as_py() for key in tables()["gen-00001"]["key"]}
    run.switch(BASE, "gen-00002", step=12)
    assert {key for _, key in run.go(12)} <= old
    assert {key for _, key in run.go(6)} - old


def test_the_mixture_holds_across_a_switch() -> None:
    weights = {"raw": 0.3, "fused": 0.7}
    recipe = BASE.model_copy(update={"splits": weights, "units": 32, "samples": 16})
    run = Run(recipe)
    run.go(23)
    run.switch(recipe.model_copy(update={"thresholds": {"aesthetic": Threshold(min=3.0)}}))
    run.go(23)
    handed = np.asarray([split == "raw" for split, _ in run.handed])
    # In whole steps, since a step's units are in order of cost; 20 of them are 10,240 samples.
    sums = np.concatenate([[0], np.cumsum(handed)])[:: 32 * 16]
    shares = (sums[20:] - sums[:-20]) / (20 * 32 * 16)
    assert len(shares) == 27 and np.abs(shares - 0.3).max() < 0.01


@pytest.mark.parametrize("held", [{"validation_samples": 40}, {"validation_share": 0.05}])
def test_what_is_validated_on_is_never_trained_on_after_a_switch(held: dict[str, float]) -> None:
    recipe = BASE.model_copy(update=held)
    run = Run(recipe)
    validated = {run.plan.parts[0].keys[row].as_py() for unit in run.plan.validation for row in unit.rows.tolist()}
    run.switch(recipe.model_copy(update={"thresholds": {"aesthetic": Threshold(min=4.0)}}), "gen-00002")
    run.go(2)
    run.switch(recipe)
    while run.plan.passes(run.step)["raw 256x256"] < 1:
        run.go(1)
    trained = {key for _, key in run.handed}
    assert validated and not validated & trained
    assert {unit.plan for unit in run.plan.validation} == {run.plan.id}


def test_validated_samples_stay_held_out_when_a_newer_generation_clusters_them_otherwise() -> None:
    recipe = BASE.model_copy(update={"validation_samples": 40})
    run = Run(recipe)
    first = run.plan.parts[0].keys
    validated = {first[row].as_py() for row in run.plan.selection.validation.tolist()}
    grown = tables()["gen-00002"]
    merged = grown.set_column(
        grown.schema.get_field_index("cluster"), "cluster", pa.array([f"other {row // 2}" for row in range(len(grown))])
    )
    terms = run.terms(recipe, "gen-00002", cursors=run.plan.cursors(3))
    part = run.plan.extend("second", 3, terms, "gen-00002", merged)
    held = {key.as_py() for key in merged["key"].take(pa.array(np.flatnonzero(part.selection.held_out)))}
    assert validated <= held and not validated & {
        part.keys[row].as_py() for step in range(3, 250) for unit in run.plan.step(step) for row in unit.rows.tolist()
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"units": 8}, r"recipe\.units: 8, this training began with 4"),
        ({"validation_samples": 5}, r"recipe\.validation_samples: 5, this training began with 0"),
    ],
)
def test_what_a_switch_cannot_change_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        Run().switch(BASE.model_copy(update=change))


def test_a_journal_over_a_swapped_dataset_is_refused() -> None:
    run = Run()
    run.go(3)
    terms = run.terms(BASE, "gen-00001", cursors=run.plan.cursors(3))
    other = Plan("gen-00001", tables()["gen-00002"], BASE, seed=1, cost=COST)
    with pytest.raises(PlanError, match="the index or the release differs"):
        other.extend("second", 3, terms, "gen-00001", tables()["gen-00002"])
    with pytest.raises(PlanError, match=r"index/gen-00001: is index swapped, .* was made for gen-00001"):
        run.plan.extend("second", 3, terms, "swapped", tables()["gen-00001"])
    with pytest.raises(PlanError, match="begins later"):
        run.switch(BASE, step=9)
        run.switch(BASE, step=8)
    with pytest.raises(PlanError, match="of another release or kind"):
        Terms.of({"recipe": {}})
