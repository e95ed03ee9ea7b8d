"""From a shard to verdicts: facts, scores that are stored once, and who drops what."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from skimage import data

from producer.operator.near_duplicate import hash_pixels
from producer.operator.stage import OperatorsConfig, build_stage
from producer.scoring import Job, fingerprint, read_scores, score_path, score_shard
from producer.source.reader import SourceConfig, open_source
from tests.unit.producer.test_sources import write_tar
from tests.unit.producer.whole import decide


def jpeg(name: str = "astronaut", size: tuple[int, int] = (300, 280), quality: int = 90, turned: bool = False) -> bytes:
    out = io.BytesIO()
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    picture = Image.fromarray(getattr(data, name)()).convert("RGB").resize(size)
    picture.save(out, "JPEG", quality=quality, exif=exif)
    return out.getvalue()


def lengths(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


def score(folder: Path, operators: OperatorsConfig | None = None, kind: str = "tars") -> pa.Table:
    """The scores of all shards of the source in `folder`, through score files as a worker writes them."""
    source = SourceConfig.model_validate({"kind": kind, "path": folder})
    job = Job(source=source, operators=operators or OperatorsConfig(), scores=folder / ".scores", batch=3)
    tables = []
    for shard in open_source(source).shards():
        path = score_path(job, shard, fingerprint(job, build_stage(job.operators)))
        said = score_shard({"shard": json.dumps(shard), "path": str(path)}, job.model_dump_json())
        assert (said["shard"], said["failed"], said["error"]) == (shard.name, "{}", "")
        table = read_scores(path)
        assert table is not None and table.num_rows == said["samples"]
        tables.append(table)
    return pa.concat_tables(tables)


def judge(folder: Path, operators: OperatorsConfig | None = None, kind: str = "tars") -> dict[str, dict[str, Any]]:
    operators = operators or OperatorsConfig()
    rows = decide(
        score(folder, operators, kind),
        build_stage(operators),
        source=SourceConfig(path="nowhere", name="set"),
        count_tokens=lengths,
    )
    return {row["key"]: row for row in rows.to_pylist()}


def write(folder: Path, samples: dict[str, tuple[bytes, str | None]], name: str = "a.tar") -> Path:
    members: list[tuple[str, bytes]] = []
    for stem, (image, caption) in samples.items():
        members += [(f"{stem}.jpg", image)] + ([(f"{stem}.txt", caption.encode())] if caption is not None else [])
    write_tar(folder / name, members)
    return folder


def test_facts_of_a_good_sample_are_stored(tmp_path: Path) -> None:
    image = jpeg(size=(300, 400), turned=True)
    row = judge(write(tmp_path, {"x": (image, "An astronaut.")}))["a/x"]
    assert (row["width"], row["height"], row["size"]) == (400, 300, len(image))
    assert row["sha256"] == hashlib.sha256(image).hexdigest()
    assert (row["source"], row["shard"], row["member"], row["cluster"]) == ("set", "a.tar", "x.jpg", "a/x")
    assert row["captions"] == [{"split": "raw", "text": "An astronaut.", "tokens": 13, "kept": True, "reason": ""}]
    upright = Image.open(io.BytesIO(image)).transpose(Image.Transpose.ROTATE_270)
    assert row["phash"] == hash_pixels(np.asarray(upright))[0]
    assert (row["kept"], row["dropped_by"], row["reason"]) == (True, "", "")
    assert (tmp_path / "a.tar").read_bytes()[row["offset"] : row["offset"] + row["size"]] == image
    assert row["score.resolution"] == pytest.approx(120_000**0.5)
    assert row["score.nsfw"] is None and row["verdict.nsfw"] is None


def test_every_kind_of_bad_sample_is_dropped_by_the_operator_for_it_and_its_neighbours_are_not(tmp_path: Path) -> None:
    good = jpeg()
    flat = io.BytesIO()
    Image.new("RGB", (300, 300), "navy").save(flat, "PNG")
    kept = {f"good-{n}": (jpeg(name), "fine") for n, name in enumerate(("coffee", "rocket", "chelsea", "moon"))}
    bad = {
        "cut": (good[: len(good) // 2], "half"),
        "empty": (b"", "nothing"),
        "html": (b"<html>" * 1000, "a page"),
        "flat": (flat.getvalue(), "one colour"),
        "tiny": (jpeg(size=(255, 255)), "too small"),
        "mute": (good, None),
        "blank": (good, "  "),
        "one": (good, "the original"),
        "one-again": (good, "the same bytes"),
        "one-alike": (jpeg(quality=60, size=(280, 262)), "encoded again"),
    }
    order = [name for pair in zip(bad, [*kept] * 3, strict=False) for name in pair if name]
    rows = judge(write(tmp_path, {name: (bad | kept)[name] for name in dict.fromkeys(order)}))
    assert {key.removeprefix("a/"): row["dropped_by"] for key, row in rows.items()} == {
        **dict.fromkeys(("cut", "empty", "html"), "broken"),
        "flat": "file_size",
        "tiny": "resolution",
        **dict.fromkeys(("mute", "blank"), "caption"),
        "one": "",
        "one-again": "exact_duplicate",
        "one-alike": "near_duplicate",
        **dict.fromkeys(kept, ""),
    }
    assert all(bool(row["reason"]) is not row["kept"] for row in rows.values())
    assert rows["a/empty"]["reason"] == "empty file"
    assert rows["a/one-again"]["reason"] == "the same bytes as a/one"
    assert {rows[f"a/{name}"]["cluster"] for name in ("one", "one-again", "one-alike")} == {"a/one"}


def test_a_duplicate_is_never_dropped_for_a_sample_that_is_dropped_itself(tmp_path: Path) -> None:
    """The larger copy has no caption: the smaller one with a caption must stay, judged against those that stay."""
    rows = judge(
        write(tmp_path, {"a": (jpeg(size=(400, 400)), None), "b": (jpeg(), "kept"), "c": (jpeg(), "a copy of b")})
    )
    assert [row["dropped_by"] for row in rows.values()] == ["caption", "", "exact_duplicate"]
    assert rows["a/a"]["score.exact_duplicate"] is None and rows["a/a"]["verdict.near_duplicate"] is None


def test_clusters_reach_across_exact_and_near_copies(tmp_path: Path) -> None:
    """b and c are the same bytes, and a larger d looks like them: all are d's cluster."""
    small, large = jpeg(), jpeg(size=(500, 466))
    rows = judge(write(tmp_path, {"b": (small, "b"), "c": (small, "c"), "d": (large, "d"), "e": (jpeg("moon"), "e")}))
    assert [row["cluster"] for row in rows.values()] == ["a/d", "a/d", "a/d", "a/e"]
    assert [row["dropped_by"] for row in rows.values()] == ["near_duplicate", "exact_duplicate", "", ""]


def test_a_moved_threshold_judges_the_same_scores_anew(tmp_path: Path) -> None:
    folder = write(tmp_path, {"x": (jpeg(), "x"), "y": (jpeg("moon", (400, 400)), "y")})
    before = score(folder)
    strict = OperatorsConfig.model_validate({"resolution": {"min": 300.0}})
    assert score(folder, strict).equals(before)
    assert [row["dropped_by"] for row in judge(folder, strict).values()] == ["resolution", ""]


def test_two_shards_that_spell_the_same_key_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, {"b/x": (jpeg(), "x")}, "a.tar")
    write(tmp_path, {"x": (jpeg("moon"), "x")}, "a/b.tar")
    rows = judge(tmp_path)
    assert list(rows) == ["a/b/x", "a/b/x~2"]
    assert {row["shard"] for row in rows.values()} == {"a.tar", "a/b.tar"}
    assert judge(tmp_path).keys() == rows.keys()


def test_a_users_folder_is_judged_as_a_tar_is(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets/cat.jpg").write_bytes(jpeg("chelsea"))
    (tmp_path / "pets/cat.txt").write_text("A cat.")
    (tmp_path / "rocket.jpg").write_bytes(jpeg("rocket"))
    rows = judge(tmp_path, kind="folder")
    assert [(key, row["shard"], row["member"], row["dropped_by"]) for key, row in rows.items()] == [
        ("pets/cat.jpg", "pets", "cat.jpg", ""),
        ("rocket.jpg", ".", "rocket.jpg", "caption"),
    ]


def test_a_tar_cut_off_in_the_middle_keeps_what_is_whole_and_counts_the_rest(tmp_path: Path) -> None:
    write(tmp_path, {"x": (jpeg("moon"), "x"), "y": (jpeg(), "y")})
    raw = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(raw[: len(raw) // 2])
    rows = judge(tmp_path)
    assert rows["a/x"]["kept"]
    assert rows["a/(damaged)"]["dropped_by"] == "broken"
    assert "claims" in rows["a/(damaged)"]["reason"]


def test_a_picture_over_the_limits_is_counted_and_not_even_read(tmp_path: Path) -> None:
    folder = write(tmp_path, {"x": (jpeg(), "x")})
    pixels = judge(folder, OperatorsConfig.model_validate({"broken": {"max_pixels": 1000}}))["a/x"]
    size = judge(folder, OperatorsConfig.model_validate({"broken": {"max_bytes": 1000}}))["a/x"]
    assert pixels["reason"] == "300x280 pixels, the limit is 1000 in all"
    assert size["reason"] == f"{len(jpeg())} bytes, the limit is 1000"
    assert size["sha256"] == ""


@pytest.mark.parametrize("where", [0.02, 0.5, 0.98, None])
def test_a_damaged_or_missing_score_file_is_none(tmp_path: Path, where: float | None) -> None:
    score(write(tmp_path, {f"{n}": (jpeg(), "x") for n in range(8)}))
    (path,) = (tmp_path / ".scores").glob("*/*.parquet")
    whole = read_scores(path)
    assert whole is not None
    if where is None:
        path.unlink()
    else:
        raw = bytearray(path.read_bytes())
        del raw[int(len(raw) * where) :]
        path.write_bytes(raw)
    assert read_scores(path) is None


def test_a_shard_that_vanished_is_an_error_of_that_shard(tmp_path: Path) -> None:
    folder = write(tmp_path, {"x": (jpeg(), "x")})
    source = SourceConfig(path=folder)
    job = Job(source=source, operators=OperatorsConfig(), scores=folder / ".scores", batch=3)
    (shard,) = open_source(source).shards()
    (folder / "a.tar").rename(folder / "b.tar")
    said = score_shard({"shard": json.dumps(shard), "path": str(folder / "x.parquet")}, job.model_dump_json())
    assert said["samples"] == 0 and "a.tar" in said["error"]
    assert not (folder / "x.parquet").exists()
