"""launch/recipe.py against a fleet that runs: applied, shown, refused, as a user does it."""

import sys
from pathlib import Path

import pytest

from launch import recipe
from launch.config import load
from launch.settings import Settings
from producer.cost import CostModel
from producer.journal import read
from producer.proposal import opening
from tests.unit.producer import test_recipe_switch
from tests.unit.producer.test_recipe_switch import RECIPE, SEED, STRICT, fleet

ROOT = Path(__file__).parents[3]


def config(folder: Path, name: str, recipe: str = "") -> Path:
    """Settings of the fleet that the tests run, with another recipe if said."""
    path = folder / name
    path.write_text(
        f'extends = "{ROOT}/launch/configs/folder.toml"\n'
        f'[run]\ndir = "{folder}"\nseed = {SEED}\n'
        f'[fleet]\nregistry = "{folder}/coordinator.json"\n'
        f"[recipe]\nunits = 4\nsamples = 2\nmin_fill = 0.05\naspects = ['1:1']\n"
        f"validation_samples = 3\nvalidation_share = 0.0\n{recipe}\n"
    )
    return path


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["recipe.py", *map(str, words)])
    return recipe.main()


def test_a_recipe_is_checked_applied_and_shown_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = config(tmp_path, "old.toml")
    new = config(tmp_path, "new.toml", "thresholds = { aesthetic = { min = 5.0 } }")
    settings = load(Settings, new, [])
    assert (load(Settings, old, []).recipe, settings.recipe) == (RECIPE, STRICT)
    monkeypatch.setattr(test_recipe_switch, "COST", CostModel.of(settings.model))
    with fleet(tmp_path) as running:
        source = running.group(0, 5)
        assert run(monkeypatch, "check", old, "--ranks", 2) == 0
        assert "costliest of 2 data-parallel ranks" in capsys.readouterr().out
        assert run(monkeypatch, "apply", new, "--from-step", 30, "fleet.workers=1") == 0
        said = capsys.readouterr().out
        assert "entry 1: plan " in said and "over gen-00001, in force from step 30" in said
        assert "aesthetic below 5" in said and "costliest of 2 data-parallel ranks" in said
        with pytest.raises(ValueError, match=r"step 29 is past: .* the least step possible is 30"):
            run(monkeypatch, "apply", old, "--from-step", 29)
        assert run(monkeypatch, "apply", old, "--from-step", "next", "--restart") == 0
        assert "entry 2: " in capsys.readouterr().out
        assert run(monkeypatch, "show", old) == 0
        shown = capsys.readouterr().out
        assert "the next entry may begin at step 30" in shown and "restart" in shown
        source.close()
    (tmp_path / "coordinator.json").unlink()
    assert run(monkeypatch, "show", old) == 0
    assert "no coordinator answers" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(monkeypatch, "apply", new, "--from-step", "soon")
    index = settings.curate.index
    assert opening(running.journal, RECIPE, index) == opening(running.journal, STRICT, index) == (RECIPE, "gen-00001")
    with pytest.raises(ValueError, match=r"recipe\.units: 9 here, 4 in force.*launch/recipe.py apply"):
        opening(running.journal, RECIPE.model_copy(update={"units": 9}), index)
    with pytest.raises(ValueError, match=r"curate\.index is"):
        opening(running.journal, RECIPE, tmp_path / "elsewhere")
    assert opening(tmp_path / "none", RECIPE, index) == (RECIPE, "latest")
    assert len(read(running.journal)) == 3
