"""The data plane at full length under faults of every kind; `make chaos` runs it. Seeds can be had again by hand."""

import json
from pathlib import Path

import pytest

from tests.chaos.command import strike
from tests.chaos.faults import KILLS, KINDS


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [20])
def test_a_training_under_every_kind_of_fault_is_the_undisturbed_one(tmp_path: Path, seed: int) -> None:
    said = strike(tmp_path, f"--seed={seed}", "--steps=300", "--faults=36", "--quiet", timeout_s=900)
    print(json.dumps(said, indent=2))
    assert sum(said["faults"].values()) == 36 and said["faults"].keys() == KINDS.keys()
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
