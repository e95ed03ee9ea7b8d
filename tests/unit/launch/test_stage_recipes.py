"""The recipes of the seven stages: each resolves, builds its operators, and says what the report says."""

import tomllib
from pathlib import Path

import pytest

from launch.config import load
from launch.settings import Settings
from producer.operator.domain import Domain
from producer.operator.rule_file import Rules
from producer.operator.stage import Stage, build_stage

CURATION = Path(__file__).parents[3] / "launch/configs/curation"
STAGES = tuple(f"s{number}" for number in range(1, 8))
# Of arXiv 2508.02324 section 3.2, by the operators' files.
REPORT = {
    "s1": {"broken", "file_size", "resolution", "exact_duplicate", "near_duplicate", "nsfw"},
    "s2": {"rotation", "clarity", "underexposure", "overexposure", "saturation", "entropy", "texture"},
    "s3": {"siglip", "chinese_clip", "token_length", "invalid_caption"},
    "s4": {"text", "script", "intensive_text", "small_character"},
    "s5": {"compression", "aesthetic", "watermark", "code", "mosaic"},
    "s6": {"category", "retrieved", "embedding", "face_mosaic", "face_blur"},
    "s7": {"taxonomy", "best_per_class", "character_rarity", "rarity"},
}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CURATION.parents[2])


def resolved(stage: str) -> tuple[Settings, Stage]:
    settings = load(Settings, CURATION / f"{stage}.toml", [])
    return settings, build_stage(settings.operators)


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_has_its_operators_and_those_of_the_stages_before(stage: str) -> None:
    _, built = resolved(stage)
    before = STAGES[: STAGES.index(stage) + 1]
    assert set(built.kinds) >= set().union(*(REPORT[one] for one in before))
    later = set().union(*(REPORT[one] for one in STAGES if one not in before))
    assert not later & set(built.kinds)
    said = tomllib.loads((CURATION / f"{stage}.toml").read_text("utf-8"))
    assert said["extends"] == ("../folder.toml" if stage == "s1" else f"s{int(stage[1]) - 1}.toml")


@pytest.mark.parametrize("stage", STAGES)
def test_the_classes_of_each_stage_are_tags_that_it_gives(stage: str) -> None:
    settings, built = resolved(stage)
    for tag, weights in settings.recipe.classes.items():
        assert built.kinds[tag] == "tag" and tag not in built.off
        if tag in ("domain", "category"):
            rules = Rules.read(CURATION / f"{tag}.toml", tag)
            assert weights.keys() <= {rules.otherwise, *(rule.name for rule in rules.rule)}
    known = {"script": {"none", "english", "chinese", "other"}, "rarity": {"none", "common", "uncommon", "rare"}}
    for tag in known.keys() & settings.recipe.classes.keys():
        assert settings.recipe.classes[tag].keys() == known[tag]


def test_resolutions_aspects_splits_and_domains_are_the_reports() -> None:
    recipes = {stage: resolved(stage)[0].recipe for stage in STAGES}
    assert [recipes[stage].resolutions for stage in STAGES] == [(256,)] * 4 + [(640,)] * 2 + [(640, 1328)]
    assert all(len(recipes[stage].aspects) == 9 for stage in STAGES)
    assert [sorted(recipes[stage].splits) for stage in STAGES] == [["raw"]] * 2 + [["fused", "raw", "recaption"]] * 5
    assert recipes["s1"].classes == {"domain": {"nature": 55, "design": 27, "people": 13}}
    assert recipes["s4"].classes["domain"] == {"nature": 55, "design": 27, "people": 13, "synthetic": 5}
    assert [sorted(recipes[stage].classes) for stage in ("s5", "s6", "s7")] == [
        ["domain", "script"],
        ["category"],
        ["category", "rarity"],
    ]
    assert resolved("s5")[0].operators.resolution.min == 640


def test_the_domains_rule_knows_rendered_text_by_the_name_of_its_source() -> None:
    smoke = tomllib.loads((CURATION.parent / "smoke.toml").read_text("utf-8"))
    (name,) = smoke["source"]["also"]
    rules = Rules.read(CURATION / "domain.toml", "x")
    assert any(name in rule.tags.get("source", ()) for rule in rules.rule if rule.name == "synthetic")
    assert Domain(CURATION / "domain.toml").may == rules.columns
