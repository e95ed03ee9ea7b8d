"""The command that makes pictures of text."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from launch.config import ConfigError, load
from launch.synthesize import SynthesizeSettings, main, ways
from producer.synthesize.sample import SynthesisError
from producer.synthesize.spread import make_tar, tars

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


def run(out: Path, *more: str) -> dict[str, bytes]:
    """The tars of four samples of each way, three a tar."""
    line = [*SMALL, "count.pure=4", "count.compositional=4", "count.template=4", "shards.shard=3", *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["synthesize", str(CONFIG), *line, f"shards.out={out}"])
        assert main() == 0
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_a_task_makes_the_tar_that_one_process_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = run(tmp_path / "alone", "shards.first=3")
    assert len(alone) == 6
    monkeypatch.chdir(tmp_path)
    counts = ["count.pure=4", "count.compositional=4", "count.template=4"]
    small = [*SMALL, *counts, "shards.shard=3", "shards.first=3", "shards.out=tasks"]
    settings = load(SynthesizeSettings, CONFIG, small)
    rows, said = list(tars(settings)), settings.absolute().model_dump_json()
    monkeypatch.chdir("/")
    made = [make_tar(row, said) for row in reversed(rows)]
    assert sum(row["samples"] for row in made) == 12
    assert {Path(row["path"]).name: Path(row["path"]).read_bytes() for row in made} == alone
    assert {Path(row["path"]).parent for row in made} == {tmp_path / "tasks"}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
def test_ray_makes_what_one_process_makes(tmp_path: Path) -> None:
    assert run(tmp_path / "ray", "workers.address=local") == run(tmp_path / "alone")
