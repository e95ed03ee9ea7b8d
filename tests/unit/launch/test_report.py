"""A report is there whole or as it was."""

import json
from pathlib import Path

import pytest

from launch.report import write_report


def test_a_report_is_written_into_a_folder_of_its_own_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    for report in ({"seconds": 1.5}, {"seconds": {"all": 2}}):
        write_report(path, report)
        assert json.loads(path.read_text()) == report
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]


def test_a_report_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(path, {"fine": True})
    with pytest.raises(TypeError):
        write_report(path, {"fine": object()})
    assert json.loads(path.read_text()) == {"fine": True}
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
