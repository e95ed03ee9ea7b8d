"""The command that makes pictures of text."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from launch.config import ConfigError, load
from launch.synthesize import SynthesizeSettings, main, ways
from producer.synthesize.sample import SynthesisError

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "launch" / "configs" / "synthesis" / "text.toml"
SMALL = [
    f'corpus.files=["{ROOT}/launch/configs/text/classics.txt"]',
    'fonts.only=["SimHei.ttf"]',
    f"template.folder={ROOT}/launch/configs/layouts",
]


def test_the_shipped_config_makes_tars_and_a_contact_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet, out = tmp_path / "sheet.png", tmp_path / "out"
    names = sorted(load(SynthesizeSettings, CONFIG, SMALL).count.model_dump())
    counts = [f"count.{name}=2" for name in names]
    monkeypatch.setattr(
        sys, "argv", ["synthesize", str(CONFIG), *SMALL, *counts, f"shards.out={out}", "--sheet", str(sheet)]
    )
    assert main() == 0
    assert sorted(path.name for path in out.iterdir()) == [f"{name}-00000.tar" for name in names]
    with Image.open(sheet) as picture:
        assert picture.width > 1000
    assert "1 fonts, " in capsys.readouterr().out


def test_nothing_to_make_and_a_package_that_is_absent_are_said() -> None:
    none = [f"count.{name}=0" for name in load(SynthesizeSettings, CONFIG, SMALL).count.model_dump()]
    with pytest.raises(ConfigError, match="count: nothing to make"):
        load(SynthesizeSettings, CONFIG, none)
    with pytest.raises(ConfigError, match=r"shards\.first: 7 is inside a tar"):
        load(SynthesizeSettings, CONFIG, ["shards.first=7"])
    with pytest.raises(SynthesisError, match="package 'absentfonts' is not installed"):
        ways(load(SynthesizeSettings, CONFIG, ["fonts.folder=package:absentfonts/x"]))
