"""Metrics files are one unbroken series, whatever ended a run."""

import json
from pathlib import Path

from consumer.metrics import JsonLines, StepReport, ValidationReport, lines


def report(step: int, loss: float = 1.0) -> StepReport:
    return StepReport(step, loss, 1e-3, 0.5, True, 8, 2048, 1e12, 0.5, 0.1)


def test_a_resumed_run_drops_what_it_trains_again(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    first = JsonLines(path, 0)
    first(ValidationReport(0, 2.0, 4, 0.1))
    for step in range(1, 6):
        first(report(step))
    first.close()
    with path.open("a") as cut:
        cut.write('{"kind": "step", "st')
    second = JsonLines(path, 3)
    second(report(4, loss=0.25))
    second.close()
    found = lines(path)
    assert [line["step"] for line in found] == [0, 1, 2, 3, 4]
    assert found[-1]["loss"] == 0.25


def test_a_loss_survives_the_file_to_the_bit(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "train.jsonl", 0)
    sink(report(1, loss=1 / 3))
    sink.close()
    assert json.loads((tmp_path / "train.jsonl").read_text())["loss"] == 1 / 3


def test_a_line_that_lost_only_its_end_is_kept_and_ended(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    first = JsonLines(path, 0)
    first(report(1))
    first.close()
    path.write_text(path.read_text().rstrip("\n"))
    second = JsonLines(path, 1)
    second(report(2))
    second.close()
    assert [line["step"] for line in lines(path)] == [1, 2]
