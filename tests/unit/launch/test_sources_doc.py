"""The examples of docs/sources.md are settings as this release reads them."""

import re
from pathlib import Path

import pytest

from launch.config import load
from launch.settings import Settings
from producer.source.parquet import Parquet
from producer.source.reader import open_source
from producer.source.remote import RemoteStore
from producer.source.remote_folder import RemoteFolder
from producer.source.shard import SourceError
from producer.source.tars import Tars

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/sources.md").read_text("utf-8")
EXAMPLES = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_read_and_opens_the_kind_of_source_it_says(example: str, tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(f'extends = "{ROOT}/launch/configs/folder.toml"\n{example}')
    source = load(Settings, config, []).source
    if "[source]" not in example:
        return  # of other settings, which are read by now
    if isinstance(source.path, Path):
        with pytest.raises(SourceError, match=r"source\.path: /data/photographs does not exist"):
            open_source(source)
        return
    reader = open_source(source)
    assert isinstance(reader, {"tars": Tars, "parquet": Parquet, "folder": RemoteFolder}[source.kind])
    assert isinstance(reader._store, RemoteStore) and reader._store.root in str(source.path)


def test_the_page_names_the_defaults_that_are() -> None:
    fields = re.findall(r"^\| `remote\.(\w+)`(?:, `remote\.(\w+)`)? \| (\d+)(?:, (\d+))? \|", TEXT, re.MULTILINE)
    from producer.source.remote import RemoteConfig

    said = {name: float(number) for one, two, a, b in fields for name, number in ((one, a), (two, b)) if name}
    defaults = RemoteConfig().model_dump()
    assert len(said) == 5 and said == {name: defaults[name] for name in said}
    assert len(EXAMPLES) == 8
