"""Several sources in one index: names, keys, provenance, exemptions, and what a further source leaves unchanged."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydantic import ValidationError

from launch.config import build
from producer.operator.entropy import Entropy
from producer.operator.judgement import Picture
from producer.operator.stage import OperatorsConfig, build_stage
from producer.scoring import Job, fingerprint, read_scores, score_path, score_shard
from producer.source.reader import SourceConfig, open_source
from producer.source.shard import SourceError
from tests.unit.producer.test_scoring import jpeg, lengths, write
from tests.unit.producer.whole import decide

OPERATORS = OperatorsConfig.model_validate({"entropy": {}})


def plain() -> bytes:
    """A PNG of two shades of grey, as noise: large enough for a file, and one bit of entropy."""
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(200, 202, (280, 300), np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


def joined(folder: Path, *, exempt: tuple[str, ...] = (), also: bool = True) -> SourceConfig:
    if not folder.joinpath("photos").exists():
        write(folder / "photos", {"x": (jpeg(), "An astronaut."), "y": (jpeg("cat"), "A cat.")})
        write(folder / "text", {"x": (jpeg("coffee"), "Coffee."), "flat": (plain(), "Nearly nothing.")})
    tree: dict[str, Any] = {"path": str(folder / "photos")}
    if also:
        tree["also"] = {"synthetic": {"path": str(folder / "text"), "exempt": list(exempt)}}
    return build(SourceConfig, tree)


def rows(source: SourceConfig, scores: Path) -> dict[str, dict[str, Any]]:
    job = Job(source=source, operators=OPERATORS, scores=scores, batch=3)
    stage, tables = build_stage(OPERATORS), []
    for shard in open_source(source).shards():
        path = score_path(job, shard, fingerprint(job, stage))
        score_shard({"shard": json.dumps(shard), "path": str(path)}, job.model_dump_json())
        table = read_scores(path)
        assert table is not None
        tables.append(table)
    made = decide(pa.concat_tables(tables), stage, source=source, count_tokens=lengths)
    return {row["key"]: row for row in made.to_pylist()}


def test_every_row_says_which_source_it_is_of_and_is_read_from_there(tmp_path: Path) -> None:
    source = joined(tmp_path, exempt=("entropy",))
    found = rows(source, tmp_path / "scores")
    assert {key: row["source"] for key, row in found.items()} == {
        "a/x": "main",
        "a/y": "main",
        "synthetic:a/flat": "synthetic",
        "synthetic:a/x": "synthetic",
    }
    reader = open_source(source)
    for key, content in (("a/x", jpeg()), ("synthetic:a/x", jpeg("coffee"))):
        assert reader.read(*(found[key][name] for name in ("shard", "member", "offset", "size"))) == content


def test_an_exempt_source_is_scored_and_not_dropped(tmp_path: Path) -> None:
    strict = rows(joined(tmp_path), tmp_path / "scores")["synthetic:a/flat"]
    spared = rows(joined(tmp_path, exempt=("entropy",)), tmp_path / "scores")["synthetic:a/flat"]
    assert strict["dropped_by"] == "entropy" and spared["kept"]
    assert spared["score.entropy"] == strict["score.entropy"] < 2 and spared["verdict.entropy"] is None


def test_an_exempt_source_keeps_what_the_operator_raises_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Entropy.measure

    def faulty(self: Entropy, picture: Picture) -> float:
        if picture.grey.std() < 20:
            raise ZeroDivisionError("of something flat")
        return whole(self, picture)

    monkeypatch.setattr(Entropy, "measure", faulty)
    strict = rows(joined(tmp_path), tmp_path / "scores")["synthetic:a/flat"]
    assert strict["reason"] == "failed: ZeroDivisionError: of something flat" and not strict["kept"]
    source = joined(tmp_path, exempt=("entropy",))
    spared = rows(source, tmp_path / "other")["synthetic:a/flat"]
    assert spared["kept"] and (spared["score.entropy"], spared["verdict.entropy"]) == (None, None)
    # Nor does it count against curate.max_failed.
    for exempt, failed in ((("entropy",), {}), ((), {"entropy": 1})):
        job = Job(source=joined(tmp_path, exempt=exempt), operators=OPERATORS, scores=tmp_path / "scores", batch=3)
        shard = open_source(source).shards()[1]
        said = score_shard({"shard": json.dumps(shard), "path": str(tmp_path / "b.parquet")}, job.model_dump_json())
        assert json.loads(said["failed"]) == failed and bool(said["example"]) == bool(failed)


def test_a_further_source_changes_no_key_and_no_score_file_of_the_first(tmp_path: Path) -> None:
    alone = rows(joined(tmp_path, also=False), tmp_path / "scores")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "scores").rglob("*.parquet")}
    both = joined(tmp_path)
    job = Job(source=both, operators=OPERATORS, scores=tmp_path / "scores", batch=3)
    first, second = (
        score_path(job, shard, fingerprint(job, build_stage(OPERATORS))) for shard in open_source(both).shards()
    )
    assert set(files) == {first} and second not in files
    with_others = rows(both, tmp_path / "scores")
    for key, row in alone.items():
        # How far the nearest picture is, is about the whole set.
        del row["score.near_duplicate"], with_others[key]["score.near_duplicate"]
        assert with_others[key] == row


def test_sources_are_told_apart_by_name_or_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"source\.name is synthetic too"):
        SourceConfig.model_validate({"path": "x", "name": "synthetic", "also": {"synthetic": {"path": "y"}}})
    with pytest.raises(ValidationError, match="String should match pattern"):
        SourceConfig.model_validate({"path": "x", "also": {"a:b": {"path": "y"}}})
    source = joined(tmp_path)
    (tmp_path / "photos" / "synthetic:b.tar").write_bytes((tmp_path / "photos" / "a.tar").read_bytes())
    with pytest.raises(SourceError, match=r"begins like the shards of source\.also\.synthetic; rename"):
        open_source(source).shards()


def test_a_further_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    source = joined(tmp_path)
    (tmp_path / "text" / "a.tar").unlink()
    with pytest.raises(SourceError, match=r"source\.also\.synthetic\.path: .* holds no \.tar"):
        open_source(source).shards()
    (tmp_path / "text").rmdir()
    with pytest.raises(SourceError, match=r"source\.also\.synthetic\.path: .* does not exist"):
        open_source(source)


def test_an_index_of_a_source_that_the_settings_do_not_name_is_refused(tmp_path: Path) -> None:
    source = joined(tmp_path)
    source.require(["main", "synthetic"])
    # One name alone is the first source's, whatever it was called when it was curated.
    SourceConfig(path="x").require(["photographs"])
    with pytest.raises(SourceError, match=r"samples of 'synthetic', which is no source here.*source\.also\.synthetic"):
        SourceConfig(path="x").require(["main", "synthetic"])
