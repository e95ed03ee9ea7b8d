"""What launch/inspect.py does: read an index, make the page, write it."""

import argparse
import os
from pathlib import Path
from typing import Any, Literal

from launch.config import load
from launch.page.document import document
from launch.page.facts import facts
from launch.page.judges import judges
from launch.page.mixture import mixture
from launch.page.pictures import Pictures
from launch.page.rows import Rows
from launch.page.survey import survey
from launch.settings import Settings
from producer.api.bucket import Bucket, bucket, nearest
from producer.recipe import RecipeConfig
from producer.source.reader import SourceConfig


class PageError(ValueError):
    """The command line asks for something that does not go together."""


def run(doc: str | None) -> int:
    """Parse the command line, write the page and say where it is."""
    arguments = _parsed(doc)
    settings = load(Settings, arguments.config, arguments.overrides) if arguments.config else None
    if settings is None and (arguments.overrides or arguments.metrics):
        raise PageError("key.path=value and --metrics say more about a config: give --config too")
    rows = Rows.open(arguments.index, arguments.generation)
    source = SourceConfig(kind=_kind(rows), path=arguments.source) if arguments.source else None
    if settings is not None and source is None:
        source = settings.source
    out = arguments.out or arguments.index.parent / "inspect.html"
    made = page(rows, settings, source, named=arguments.source is None, metrics=arguments.metrics)
    write(out, made)
    print(f"{out}: {rows.folder.name} of {arguments.index}, {rows.said['rows']:,} samples, {_size(out)}")
    return 0


def _parsed(doc: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, metavar="INDEX", help="the index's folder, curate.index of a config")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings laid over the config's")
    parser.add_argument("--config", type=Path, metavar="CONFIG", help="a TOML file: its source, buckets and recipe")
    parser.add_argument("--generation", default="latest", metavar="NAME", help="such as gen-00003; else the latest")
    parser.add_argument("--source", metavar="PATH", help="where the pictures are, instead of the config's source")
    parser.add_argument("--metrics", type=Path, metavar="FOLDER", help="train.metrics of a run by the config")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page; else inspect.html beside the index")
    return parser.parse_intermixed_args()


def page(
    rows: Rows, settings: Settings | None, source: SourceConfig | None, *, named: bool, metrics: Path | None = None
) -> str:
    """The page of a generation; `named`: only samples of `source`'s name are read from it."""
    recipe = settings.recipe if settings else RecipeConfig()
    found = survey(rows, judges(rows.operators), _Buckets(recipe))
    said: dict[str, Any] = facts(rows, found, Pictures(source, named=named))
    said["recipe"] = {"given": settings is not None, "resolutions": list(recipe.resolutions)}
    said["mixture"] = (
        mixture(rows, settings, metrics) if settings else {"why": "give --config: the mixture is its recipe's"}
    )
    said["thresholds"] = {name: one.model_dump(exclude_none=True) for name, one in recipe.thresholds.items()}
    return document(f"{rows.folder.name} · curation", said)


class _Buckets:
    """Names the bucket of a picture as curation's own table does: the nearest in aspect of the largest resolution that
    the picture has itself.
    """

    def __init__(self, recipe: RecipeConfig) -> None:
        self._sizes = {size: _all(size, recipe.aspects) for size in sorted(recipe.resolutions)}

    def __call__(self, height: int, width: int) -> str:
        fits = [size for size in self._sizes if size * size <= height * width] or [min(self._sizes)]
        return str(nearest(height, width, self._sizes[fits[-1]]))


def _all(size: int, aspects: tuple[str, ...]) -> tuple[Bucket, ...]:
    return tuple(bucket(size, aspect) for aspect in aspects)


def _kind(rows: Rows) -> Literal["tars", "parquet", "folder"]:
    """What kind of source the rows are from, by the first shard's name."""
    shard = next((table["shard"][0].as_py() for _, table in rows.batches(["shard"]) if table.num_rows), "")
    return "tars" if shard.endswith(".tar") else "parquet" if shard.endswith(".parquet") else "folder"


def write(path: Path, text: str) -> None:
    """Write aside and rename, so that a page of this name is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text, "utf-8")
    os.replace(aside, path)


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
