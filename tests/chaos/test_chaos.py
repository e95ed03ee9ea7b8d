"""The data plane at full length under faults of every kind; `make chaos` runs it. Seeds can be had again by hand."""

import json
from pathlib import Path

import pytest

from tests.chaos.command import strike
from tests.chaos.faults import KILLS
from tests.chaos.run import PLAIN


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [20])
def test_a_training_under_every_kind_of_fault_is_the_undisturbed_one(tmp_path: Path, seed: int) -> None:
    said = strike(tmp_path, f"--seed={seed}", "--steps=300", "--faults=36", "--quiet", timeout_s=900)
    print(json.dumps(said, indent=2))
    assert sum(said["faults"].values()) == 36 and said["faults"].keys() == set(PLAIN)
    assert all(group["closed passes"] == 3 and group["rejected"] for group in said["groups"].values())
    assert said["looks that found the disk full"]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [50])
def test_fifty_kills_over_three_passes_lose_nothing_and_repeat_nothing(tmp_path: Path, seed: int) -> None:
    said = strike(tmp_path, f"--seed={seed}", "--steps=300", "--faults=50", "--far", "--kinds", *KILLS, timeout_s=900)
    print(json.dumps(said, indent=2))
    assert sum(said["faults"].values()) == 50 and set(said["faults"]) == {
        "kill worker",
        "kill coordinator",
        "kill trainer",
    }
    assert len({start for start, _ in said["trainer (step, groups)"]}) > 5
    assert all(group["closed passes"] == 3 for group in said["groups"].values())


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [6])
def test_recipes_that_change_under_faults_hold_from_their_step_on(tmp_path: Path, seed: int) -> None:
    kinds = ["switch recipe", *KILLS, "freeze coordinator", "cut link"]
    said = strike(tmp_path, f"--seed={seed}", "--steps=200", "--faults=24", "--kinds", *kinds, timeout_s=900)
    print(json.dumps(said, indent=2))
    assert sum(said["faults"].values()) == 24 and said["recipes"] == 1 + said["faults"]["switch recipe"] == 5


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [8])
def test_samples_that_end_their_workers_are_found_among_other_deaths(tmp_path: Path, seed: int) -> None:
    options = ["--steps=150", "--rows=384", "--deadly=96", "--faults=9", "--kinds", *KILLS]
    said = strike(tmp_path, f"--seed={seed}", *options, timeout_s=900)
    print(json.dumps(said, indent=2))
    assert said["workers that a sample ended"] >= 4
    assert all(group["closed passes"] == 3 for group in said["groups"].values())
