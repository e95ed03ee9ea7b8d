"""Edits: reference pictures are found beside their target, judged with it, and planned as a task of their own."""

import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.template import EDIT_PLUS, VAE_AREA
from model.template import fitted as fitted_picture
from producer.cost import CostModel
from producer.entry import compile_entry
from producer.plan import Plan
from producer.recipe import RecipeConfig, RecipeError, select
from producer.reference import NARROWEST, fitted, tokens
from producer.source.reader import SourceConfig, open_source
from producer.source.remote import FsspecStore, RemoteConfig
from producer.source.remote_folder import RemoteFolder
from tests.unit.producer.fixed import content
from tests.unit.producer.rows import table
from tests.unit.producer.test_scoring import jpeg, judge
from tests.unit.producer.test_sources import Members, read_all, write_tar

COST = CostModel(40_768_634_880, 2_211_840)

EDIT: Members = [
    ("a.jpg", jpeg()),
    ("a.txt", b"make it night"),
    ("a.ref2.PNG", jpeg("coffee")),
    ("a.ref1.jpg", jpeg("chelsea", (200, 280))),
    ("b.jpg", jpeg("rocket")),
    ("b.txt", b"a rocket"),
]


def folder_of(path: Path, members: Members) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, raw in members:
        (path / name).write_bytes(raw)
    return path


@pytest.mark.parametrize("kind", ["tars", "folder", "remote folder"])
def test_references_beside_a_target_are_its_own_in_their_order(tmp_path: Path, kind: str) -> None:
    if kind == "tars":
        reader = open_source(SourceConfig(path=write_tar(tmp_path / "s.tar", EDIT).parent))
    elif kind == "folder":
        reader = open_source(SourceConfig(kind="folder", path=folder_of(tmp_path / "s", EDIT)))
    else:
        reader = RemoteFolder(FsspecStore(f"file://{folder_of(tmp_path / 's', EDIT)}", RemoteConfig(schemes=("file",))))
    edit, plain = read_all(reader).values()
    assert [place.member for place in edit.references] == ["a.ref1.jpg", "a.ref2.PNG"]
    held = [reader.read(edit.shard, *place) for place in edit.references]
    assert held == [jpeg("chelsea", (200, 280)), jpeg("coffee")]
    assert not edit.fault and edit.captions == {"raw": "make it night"}
    assert plain.references == () and not plain.fault


@pytest.mark.parametrize("kind", ["tars", "folder"])
@pytest.mark.parametrize(
    ("numbers", "fault"),
    [
        ((1, 3), "references numbered 1, 3: number them from 1"),
        ((0, 1), "references numbered 0, 1: number them from 1"),
        ((1, 2, 3, 4), "4 references, at most 3"),
    ],
)
def test_references_that_make_no_sense_drop_the_sample(
    tmp_path: Path, kind: str, numbers: tuple[int, ...], fault: str
) -> None:
    members = [("a.jpg", jpeg()), *((f"a.ref{number}.jpg", jpeg("coffee")) for number in numbers)]
    path = write_tar(tmp_path / "s" / "s.tar", members).parent if kind == "tars" else folder_of(tmp_path, members)
    (sample,) = read_all(open_source(SourceConfig.model_validate({"kind": kind, "path": path}))).values()
    assert fault in sample.fault


def test_a_name_like_a_references_without_its_target_is_a_sample_of_a_folder(tmp_path: Path) -> None:
    reader = open_source(SourceConfig(kind="folder", path=folder_of(tmp_path, [("holiday.ref1.jpg", jpeg())])))
    assert [key for key, sample in read_all(reader).items() if not sample.fault] == ["holiday.ref1.jpg"]


def test_another_reference_means_that_a_folders_piece_is_scored_again(tmp_path: Path) -> None:
    source = SourceConfig(kind="folder", path=folder_of(tmp_path, EDIT))
    (before,) = open_source(source).shards()
    (tmp_path / "a.ref1.jpg").write_bytes(jpeg("coffee", (100, 90)))
    (after,) = open_source(source).shards()
    assert before.members == after.members == ("a.jpg", "b.jpg") and before.stamp != after.stamp


def test_curation_keeps_what_is_known_of_references_and_drops_samples_with_bad_ones(tmp_path: Path) -> None:
    narrow = io.BytesIO()
    Image.new("RGB", (2020, 20)).save(narrow, "PNG")
    bad: Members = []
    for name, reference in (("cut", jpeg("coffee")[:2000]), ("narrow", narrow.getvalue())):
        bad += [(f"{name}.jpg", jpeg("hubble_deep_field")), (f"{name}.txt", b"words"), (f"{name}.ref1.jpg", reference)]
    # Another edit that ends in the same picture.
    bad += [("twin.jpg", jpeg()), ("twin.txt", b"other words"), ("twin.ref1.jpg", jpeg("rocket"))]
    write_tar(tmp_path / "s.tar", [*EDIT, *bad])
    rows = judge(tmp_path)
    first, second = rows["s/a"]["references"]
    assert rows["s/a"]["kept"] and rows["s/b"]["kept"] and rows["s/twin"]["kept"] and rows["s/b"]["references"] == []
    assert (first["member"], first["width"], first["height"]) == ("a.ref1.jpg", 200, 280)
    assert second["sha256"] == hashlib.sha256(jpeg("coffee")).hexdigest() and second["size"] == len(jpeg("coffee"))
    for name, why in (("cut", "reference 1: does not decode"), ("narrow", "reference 1: 2020x20 pixels, narrower")):
        row = rows[f"s/{name}"]
        assert not row["kept"] and row["dropped_by"] == "broken" and row["reason"].startswith(why)


def test_sizes_of_references_are_those_of_the_edit_pipelines() -> None:
    draw = np.random.default_rng(0)
    for width, height in [*draw.integers(20, 3000, (200, 2)).tolist(), (2000, 20), (20, 2000), (1, 1)]:
        if max(width, height) <= NARROWEST * min(width, height):
            for area in (EDIT_PLUS.area, VAE_AREA):
                wanted = fitted_picture(Image.new("L", (width, height)), area)
                assert fitted(np.asarray(height), np.asarray(width), area) == (wanted.height, wanted.width)
    # 196 tokens in the prompt and 4,096 of the picture (the pipelines' numbers for a square).
    assert tokens(np.asarray(500), np.asarray(500), VAE_AREA) == 196 + 4096


def reference(side: int = 300, ratio: float = 1.0) -> dict[str, object]:
    sides = {"width": int(side * ratio), "height": side}
    return {"member": "x.ref1.jpg", "offset": 0, "size": 9, "sha256": "y", **sides}


def edits(rows: int = 600) -> list[list[dict[str, object]]]:
    """Every third row is an edit of one to three references."""
    return [[reference(ratio=1 + n % 5 / 4)] * (1 + n % 3) if n % 9 % 3 == 0 else [] for n in range(rows)]


def recipe(**over: object) -> RecipeConfig:
    settings = {"tasks": {"t2i": 0.75, "ti2i": 0.25}, "units": 16, "samples": 8, "reference_resolution": 256} | over
    return RecipeConfig.model_validate(settings)


def test_edits_are_units_of_their_own_in_their_share_and_every_pass_holds_each_once() -> None:
    rows = table(600, references=edits())
    plan = Plan("i", rows, recipe(aspects=("1:1",), validation_samples=20), seed=1, cost=COST)
    shown = set(np.flatnonzero(plan.selection.of_task("ti2i") & (plan.selection.tokens[0] >= 0)).tolist())
    samples: Counter[str] = Counter()
    handed: list[int] = []
    for step in range(400):
        for unit in plan.step(step):
            assert {row in shown for row in unit.rows.tolist()} == {unit.task == "ti2i"}
            samples[unit.task] += len(unit.rows)
            handed += unit.rows.tolist() if unit.task == "ti2i" else []
    assert samples["ti2i"] / samples.total() == pytest.approx(0.25, abs=0.01)
    held = {row for unit in plan.validation for row in unit.rows.tolist()}
    trained = shown - held
    assert set(handed[: len(trained) - 32]) <= trained and max(Counter(handed[: len(trained) - 32]).values()) == 1
    assert set(handed) == trained
    for unit in plan.validation:
        assert {row in shown for row in unit.rows.tolist()} == {unit.task == "ti2i"}
    assert {unit.task for unit in plan.validation} == {"t2i", "ti2i"}


def test_references_count_in_what_a_unit_costs() -> None:
    plan = Plan("i", table(600, references=edits()), recipe(), seed=1, cost=COST)
    entry = plan.entry(0)
    sizes = {task: {g.samples for g in entry.groups if g.task == task} for task in ("t2i", "ti2i")}
    # About 400 tokens, and as many again for each reference of an edit.
    assert sizes["t2i"] == {8} and max(sizes["ti2i"]) == 4
    for unit, cost in zip(plan.step(3), entry.deal(3).costs.tolist(), strict=True):
        row = select(table(600, references=edits()), recipe())
        assert row.references is not None
        text = row.tokens[0][unit.rows].astype(np.int64) + row.references[unit.rows]
        assert cost == int(COST(np.asarray(unit.bucket.tokens), text).sum())
    assert plan.imbalance(4) < 0.25


def test_without_edits_every_step_and_the_plans_name_are_as_they_were() -> None:
    one = Plan("i", table(600), RecipeConfig(), seed=1, cost=COST)
    assert one.id == "1d76d3eaabd39a8d"
    mixed = Plan("i", table(600), RecipeConfig(reference_resolution=512), seed=1, cost=COST)
    assert mixed.id == one.id and content(mixed.step(7)) == content(one.step(7))


def test_a_recipe_without_a_weight_for_edits_leaves_them_out_and_counts_them() -> None:
    rows = table(600, references=edits())
    alone = select(rows, recipe(tasks={"t2i": 1.0}))
    both = select(rows, recipe())
    plan = Plan("i", rows, recipe(tasks={"t2i": 1.0}), seed=1, cost=COST)
    assert {unit.task for unit in plan.step(0)} == {"t2i"}
    assert alone.counts["raw"]["ti2i, which recipe.tasks gives no weight"] == sum(map(bool, edits()))
    assert alone.counts["raw"]["used"] < both.counts["raw"]["used"]


def test_a_switch_of_the_tasks_weights_repeats_no_sample_of_an_open_pass() -> None:
    rows = table(3000, references=edits(3000))
    settings = [recipe(aspects=("1:1",), tasks={"t2i": 1.0, "ti2i": share}) for share in (0.1, 1.0)]
    before, after = (select(rows, one) for one in settings)
    entry = compile_entry(before, settings[0], seed=1, cost=COST)
    seen = entry.seen(8)
    handed = {row for step in range(8) for row in entry.deal(step).rows.tolist()}
    assert set(seen["raw"].tolist()) == handed and len(handed) > 500
    other = compile_entry(after, settings[1], seed=1, cost=COST, first_step=8, number=1, seen=seen)
    assert {group.task: int(count) > 0 for group, count in zip(other.groups, other.old, strict=True)} == {
        "t2i": True,
        "ti2i": True,
    }
    assert (other.passes(12) < 1).all()
    assert not handed & {row for step in range(8, 12) for row in other.deal(step).rows.tolist()}


def test_a_task_without_samples_or_sense_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"recipe\.tasks\.ti2i: leaves nothing"):
        select(table(20), recipe())
    with pytest.raises(RecipeError, match=r"leaves nothing to train on"):
        select(table(20, references=[[reference()]] * 20), RecipeConfig())
    for wrong in ({}, {"i2i": 1.0}, {"t2i": 0.0}):
        with pytest.raises(ValueError, match=r"recipe\.tasks: .* name t2i, ti2i or both"):
            recipe(tasks=wrong)
