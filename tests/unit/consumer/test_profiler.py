"""Chosen steps leave traces, others cost nothing, and a full disk ends no training."""

import gzip
import json
import logging
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from consumer.config import ProfileConfig
from consumer.profiler import Profiler


def work(profiler: Profiler, steps: int) -> None:
    for step in range(1, steps + 1):
        with profiler.step(step):
            torch.ones(64, 64) @ torch.ones(64, 64)


def test_the_chosen_steps_of_the_chosen_ranks_are_traced(tmp_path: Path) -> None:
    config = ProfileConfig(steps=(2, 4), ranks=(0, 3), shapes=True)
    for rank in range(4):
        work(Profiler(config, rank, tmp_path), 5)
    names = [f"step-{step:08d}-rank-{rank:05d}.json.gz" for step in (2, 4) for rank in (0, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    events = json.loads(gzip.decompress((tmp_path / names[0]).read_bytes()))["traceEvents"]
    products = [event for event in events if event.get("name") == "aten::mm"]
    assert len(products) == 1 and products[0]["args"]["Input Dims"][0] == [64, 64]


def test_past_the_limit_no_further_step_is_traced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        work(Profiler(ProfileConfig(steps=(1, 2, 3), limit_mb=1e-6), 0, tmp_path), 4)
    assert len(list(tmp_path.iterdir())) == 1
    assert "passed profile.limit_mb" in caplog.text and len(caplog.records) == 1


def test_a_trace_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        work(Profiler(ProfileConfig(steps=(1,)), 0, tmp_path / "file"), 2)
    assert "was not written" in caplog.text


def test_a_step_that_fails_still_leaves_its_trace(tmp_path: Path) -> None:
    profiler = Profiler(ProfileConfig(steps=(1,)), 0, tmp_path)
    with pytest.raises(ZeroDivisionError), profiler.step(1):
        1 / 0  # noqa: B018
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("settings", [{"steps": (0,)}, {"steps": (1,), "ranks": (-1,)}, {"steps": tuple(range(1, 40))}])
def test_steps_and_ranks_that_are_none_or_too_many_are_refused(settings: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValidationError, match=r"profile.steps"):
        ProfileConfig(**settings)
