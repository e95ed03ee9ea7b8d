"""What curation says to people and to the smoke run's report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch.config import load
from launch.curate import CurationView, report, run, show
from launch.settings import Settings
from producer.curate import Progress
from producer.funnel import Funnel

ROOT = Path(__file__).parents[3]

FUNNEL = Funnel(
    generation="0123456789abcdef",
    seen=194,
    kept=182,
    dropped={"broken": 5, "file_size": 0, "caption": 7},
    example={"broken": "a/cut: does not decode", "caption": "a/mute: no caption [raw]"},
    buckets={"256x256": 100, "144x448": 82},
    off={"nsfw": "no classifier"},
    shards=6,
    scored=2,
)


def test_the_table_shows_every_number_of_the_funnel(capsys: pytest.CaptureFixture[str]) -> None:
    show(FUNNEL)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows if row and row[1]] == [
        ["in", "194"],
        ["dropped: broken", "-5"],
        ["dropped: file_size", "0"],
        ["dropped: caption", "-7"],
        ["dropped: nsfw", "off"],
        ["kept", "182"],
        ["kept: 256x256", "100"],
        ["kept: 144x448", "82"],
    ]


def test_how_many_are_annotated_is_shown_where_annotations_join(capsys: pytest.CaptureFixture[str]) -> None:
    show(replace(FUNNEL, annotated=170))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert ["kept: annotated", "170", ""] in rows


def test_captions_that_cannot_be_used_are_shown_where_their_samples_stay(capsys: pytest.CaptureFixture[str]) -> None:
    show(replace(FUNNEL, faulty=3, faulty_example="a/x: json cannot be read"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert ["kept: faulty caption", "3"] in [row[:2] for row in rows]


def test_names_are_data_and_neither_markup_nor_orders_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show(replace(FUNNEL, example={"broken": "a/[red]x: \x1b[2J"}))
    out = capsys.readouterr().out
    assert "a/[red]x: ?[2J" in out and "\x1b" not in out


def test_the_report_is_json_and_its_sums_add_up() -> None:
    said = json.loads(json.dumps(report(FUNNEL, 12.34)))
    assert said["in"] == said["kept"] + sum(said["dropped"].values())
    assert (said["seconds"], said["shards_scored"], said["buckets"]) == (12.3, 2, FUNNEL.buckets)


def test_without_a_terminal_progress_is_a_line_a_stage_and_one_at_the_end_of_each(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = CurationView()
    for done in range(100):
        view(Progress("scoring", done, 99, done * 10))
    view(Progress("judging", 99, 99, 990))
    view.close()
    assert capsys.readouterr().out.splitlines() == [
        "scoring: 0 of 99 shards, 0 samples",
        "scoring: 99 of 99 shards, 990 samples",
        "judging: 99 of 99 shards, 990 samples",
    ]


def test_ctrl_c_says_that_what_was_scored_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> Funnel:
        raise KeyboardInterrupt

    monkeypatch.setattr("launch.curate.curate", interrupted)
    settings = load(Settings, ROOT / "launch/configs/folder.toml", [f"run.dir={tmp_path}"])
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    assert capsys.readouterr().out == "interrupted; shards that were scored are kept, run it again to go on\n"
