"""The engine of curation: rows of any number of shards in order, older generations first, failures counted, kills."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import producer.curate as engine
from producer.curate import CurateConfig, CurateError, curate
from producer.funnel import Funnel
from producer.index import Index, write_generation
from producer.older import Older
from producer.operator.clarity import Clarity
from producer.operator.file_size import FileSize
from producer.operator.judgement import Sample, Score
from producer.operator.stage import OperatorsConfig
from producer.output_folder import FolderError
from producer.runs import read_in_order, write_run
from producer.scoring import Job, _opened, score_shard
from producer.source.reader import SourceConfig
from tests.unit.producer import rows
from tests.unit.producer.test_scoring import jpeg, write

ROOT = Path(__file__).parents[3]

PLACES = st.tuples(
    st.sampled_from(["a", "b", "b/c", "b~2", "b~3", "z"]), st.sampled_from(["s", "t"]), st.integers(0, 9)
)


def told_apart(places: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Sorted, later ones of equal keys numbered past what is taken: the plain twin."""
    taken = {key for key, _, _ in places}
    found: list[tuple[str, str, int]] = []
    used: set[str] = set()
    for key, shard, offset in sorted(places):
        name, number = key, 2
        while name in used if name == key else name in taken:
            name, number = f"{key}~{number}", number + 1
        used.add(name)
        taken.add(name)
        found.append((name, shard, offset))
    return sorted(found)


@settings(max_examples=60)
@given(st.lists(st.lists(PLACES, max_size=12), max_size=7), st.integers(1, 4), st.integers(2, 3))
def test_rows_of_all_shards_come_in_order_with_unique_keys(
    shards: list[list[tuple[str, str, int]]], batch: int, sides: int
) -> None:
    places = [place for shard in shards for place in shard]
    if len(set(places)) < len(places):
        return
    with pytest.MonkeyPatch.context() as patch:
        folder = Path(os.environ["PYTEST_TMP"])
        patch.setattr("producer.runs._BATCH", batch)
        patch.setattr("producer.runs._SIDES", sides)
        tables = [
            pa.table(
                {
                    "key": pa.array([one[0] for one in shard], pa.string()),
                    "shard": pa.array([one[1] for one in shard], pa.string()),
                    "member": pa.array(["m"] * len(shard), pa.string()),
                    "offset": pa.array([one[2] for one in shard], pa.int64()),
                }
            )
            for shard in shards
        ]
        runs = [write_run(table, folder / f"{number}.arrow") for number, table in enumerate(tables)]
        found = [
            (row["key"], row["shard"], row["offset"])
            for table in read_in_order([run for run in runs if run], folder)
            for row in table.to_pylist()
        ]
    keys = [key for key, _, _ in found]
    assert keys == sorted(set(keys))
    assert sorted(found) == told_apart(places)


@pytest.fixture(autouse=True)
def folder_for_hypothesis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_TMP", str(tmp_path))


def test_the_first_generation_that_kept_a_sample_with_these_bytes_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.older._BATCH", 7)
    said = {"aesthetic": {"version": 1}}
    kept = [np.arange(40) % 3 == 0, np.arange(40) % 2 == 0]
    for column in kept:
        write_generation(tmp_path, rows.table(40, kept=column), tokenizer="t", operators=said)
    keys = sorted([*rows.table(40)["key"].to_pylist(), "aaa", "zzz"])
    older, found = Older(tmp_path), []
    for first in range(0, 42, 5):
        some = keys[first : first + 5]
        # Other bytes under a known key are another picture.
        digests = ["other" if one.endswith("06") else one for one in some]
        found += older.first_kept(pa.array(some), pa.array(digests)).tolist()
    expected = {
        key: 3 if row == 6 else 1 if kept[0][row] else 2 if kept[1][row] else 3
        for row, key in enumerate(rows.table(40)["key"].to_pylist())
    }
    assert dict(zip(keys, found, strict=True)) == expected | {"aaa": 3, "zzz": 3}
    assert older.newest == 3


def lengths(_: Path, texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


def here(job: Job, todo: dict[Any, Path], config: CurateConfig, note: Any) -> None:
    """Scoring in this process; test_curate.py has it on Ray."""
    _opened.cache_clear()
    for shard, path in todo.items():
        note(score_shard({"shard": json.dumps(shard), "path": str(path)}, job.model_dump_json()))


def run(source: Path, folder: Path, operators: dict[str, object] | None = None, **changes: object) -> Funnel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_run", here)
        patch.setattr(engine, "count_tokens", lengths)
        patch.setattr(engine, "tokenizer_fingerprint", lambda _: "none")
        return curate(
            SourceConfig(path=source),
            CurateConfig.model_validate({"index": folder / "index", "batch": 3, **changes}),
            OperatorsConfig.model_validate(operators or {}),
            tokenizer=folder,
            resolutions=(256,),
            aspects=("1:1",),
        )


NAMES = ("astronaut", "coffee", "rocket", "chelsea", "moon")


def photos(folder: Path) -> Path:
    """Two shards of pictures, a broken one among them."""
    write(folder, {name: (jpeg(name), f"a {name}") for name in NAMES[:3]} | {"cut": (jpeg()[:999], "cut")}, "a.tar")
    return write(folder, {name: (jpeg(name), f"a {name}") for name in NAMES[3:]}, "b.tar")


def content(index: Path) -> list[bytes]:
    return [(index / "gen-00001" / name).read_bytes() for name in ("rows.parquet", "generation.json")]


def test_an_operator_that_raises_costs_the_samples_it_raises_on_and_the_sums_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FileSize.score

    def faulty(self: FileSize, samples: Sequence[Sample]) -> list[Score]:
        if any(one.raw.key == "a/coffee" for one in samples):
            raise ZeroDivisionError("of coffee")
        return whole(self, samples)

    source = photos(tmp_path / "raw")
    monkeypatch.setattr(FileSize, "score", faulty)
    funnel = run(source, tmp_path, max_failed=0.5)
    assert funnel.failed == {"file_size": 1} and funnel.dropped["broken"] == 1
    assert funnel.seen == 6 == funnel.kept + sum(funnel.dropped.values()) + sum(funnel.failed.values())
    assert funnel.example["file_size"] == "a/coffee: failed: ZeroDivisionError: of coffee"
    row = {row["key"]: row for row in Index.open(tmp_path / "index").table.to_pylist()}["a/coffee"]
    assert (row["kept"], row["dropped_by"], row["score.file_size"]) == (False, "file_size", None)
    with pytest.raises(
        CurateError,
        match=r"curate\.max_failed: .* 16\.7% of 6 samples, more than 1\.0%; operators\.file_size on 1 .*coffee",
    ):
        run(source, tmp_path)
    monkeypatch.setattr(FileSize, "score", whole)
    assert run(source, tmp_path, max_failed=0.5).failed == {"file_size": 1}, (
        "a score that is there is not asked for again"
    )
    mended = run(source, tmp_path, retry_failed=True)
    assert (mended.failed, mended.scored, mended.kept) == ({}, 1, 5)


def test_a_run_that_stops_for_failures_does_not_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = photos(tmp_path / "raw")
    with monkeypatch.context() as patch:
        patch.setattr(FileSize, "score", lambda *_: 1 / 0)
        with pytest.raises(
            CurateError, match=r"curate\.max_failed: operators failed on 100\.0% .* operators\.file_size"
        ):
            run(source, tmp_path)
    assert not (tmp_path / "index").exists() or not list((tmp_path / "index").glob("gen-*"))
    assert run(source, tmp_path).failed == {}


def test_a_full_disk_is_not_taken_for_a_damaged_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    source = photos(tmp_path / "raw")
    with monkeypatch.context() as patch:
        patch.setattr("producer.scoring.pq.write_table", full)
        with pytest.raises(
            CurateError, match=r"^2 of 2 shards are not scored: a\.tar: \[Errno 28\] No space left"
        ) as said:
            run(source, tmp_path)
    assert "cannot be read" not in str(said.value)
    assert run(source, tmp_path).scored == 2


def test_a_caption_that_cannot_be_used_is_counted_where_its_sample_stays(tmp_path: Path) -> None:
    source = write(tmp_path / "raw", {name: (jpeg(name), f"a {name}") for name in NAMES}, "a.tar")
    with tarfile.open(source / "a.tar", "a") as tar:
        for name in NAMES[:2]:
            info = tarfile.TarInfo(f"{name}.json")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"{"))
    funnel = run(source, tmp_path)
    assert (funnel.kept, funnel.faulty) == (5, 2)
    assert funnel.faulty_example.startswith("a/astronaut: json cannot be read: Expecting property name")


def test_folders_that_cannot_be_made_are_named_by_their_settings_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = photos(tmp_path / "raw")
    (tmp_path / "file").touch()
    said = r"the folder .*file/{} cannot be made \(Not a directory\); give one on a disk that can be written to"
    with pytest.raises(FolderError, match=rf"^curate\.index: {said.format('index')}"):
        run(source, tmp_path / "file")
    with pytest.raises(FolderError, match=rf"^curate\.work: {said.format('work')}"):
        run(source, tmp_path, work=tmp_path / "file/work")
    monkeypatch.setattr("producer.disk.os.access", lambda path, _: Path(path).name != "index")
    with pytest.raises(FolderError, match=r"^curate\.index: the folder .*index cannot be written to; give one"):
        run(source, tmp_path)
    assert not (tmp_path / "curate").exists()


def test_an_operator_that_is_added_is_the_only_one_that_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = photos(tmp_path / "raw")
    run(source, tmp_path)
    asked: list[str] = []
    for kind in (FileSize, Clarity):
        plain = kind.score
        monkeypatch.setattr(
            kind, "score", lambda self, samples, plain=plain: asked.append(self.name) or plain(self, samples)
        )
    added = run(source, tmp_path, {"clarity": {}})
    assert set(asked) == {"clarity"} and added.scored == 2
    asked.clear()
    run(source, tmp_path / "fresh", {"clarity": {}})
    assert set(asked) == {"clarity", "file_size"}
    latest = Index.open(tmp_path / "index").table
    assert latest.equals(Index.open(tmp_path / "fresh" / "index").table)


def test_growth_never_replaces_what_was_kept_before(tmp_path: Path) -> None:
    """A larger copy of the astronaut arrives later; had it been there at once, it would be the one."""
    source = write(tmp_path / "raw", {"x": (jpeg(), "x"), "y": (jpeg("moon"), "y")}, "b.tar")
    run(source, tmp_path)
    write(tmp_path / "raw", {"big": (jpeg(size=(600, 560)), "big")}, "a.tar")
    grown = run(source, tmp_path)
    table = Index.open(tmp_path / "index").table
    assert {row["key"]: row["cluster"] for row in table.to_pylist()} == {"a/big": "b/x", "b/x": "b/x", "b/y": "b/y"}
    assert grown.example["near_duplicate"] == "a/big: looks like b/x"
    assert run(source, tmp_path).generation == grown.generation
    assert run(source, tmp_path / "fresh").example["near_duplicate"] == "b/x: looks like a/big"


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit.producer import test_curation_engine as test
number, left = 0, int(sys.argv[3])
def count(frame, event, _):
    global number
    if "/producer/" in frame.f_code.co_filename and "/tests/" not in frame.f_code.co_filename:
        number += 1
        if number == left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(count)
test.run(Path(sys.argv[1]), Path(sys.argv[2]), {"clarity": {}})
sys.setprofile(None)
print(number)
"""


def killed(source: Path, folder: Path, moment: int) -> subprocess.CompletedProcess[str]:
    """Curation in a process that kills itself at the `moment`-th call or return in producer/; 0: never."""
    command = [sys.executable, "-c", KILLED, str(source), str(folder), str(moment)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("moments", [2, pytest.param(40, marks=pytest.mark.long)])
def test_killed_at_any_moment_and_started_again_the_index_is_the_same_to_the_byte(tmp_path: Path, moments: int) -> None:
    source = photos(tmp_path / "raw")
    whole = killed(source, tmp_path / "whole", 0)
    assert whole.returncode == 0, whole.stderr
    calls = int(whole.stdout)
    draw = np.random.default_rng(moments)
    # One early, one late and others anywhere: from listing the source to the rename of the generation.
    for number, moment in enumerate([calls // 20, calls - 20, *draw.integers(1, calls, moments - 2).tolist()]):
        folder = tmp_path / f"killed-{number}"
        assert killed(source, folder, moment).returncode == -signal.SIGKILL
        run(source, folder, {"clarity": {}})
        assert content(folder / "index") == content(tmp_path / "whole" / "index"), moment
        assert not list((folder / "curate").glob("judging-*")) and not list((folder / "index").glob(".writing-*"))


@pytest.mark.parametrize("number", [8_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_memory_does_not_grow_with_the_set(tmp_path: Path, number: int) -> None:
    """Rows of about 1 KB, compared in pieces small enough for the fewer to be many."""
    # The piece, and three sets: the first one also loads what is imported where it is needed.
    numbers = [str(number // part) for part in (8, 8, 4, 1)]
    command = [sys.executable, "-m", "tests.unit.producer.large_set", str(tmp_path), *numbers]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=3000)
    _, few, many = map(json.loads, done.stdout.splitlines())
    assert many["rows"] == number and many["dropped"]["near_duplicate"] > number // 100
    # One number more for each row would be 8 bytes for each that there is more.
    assert 0 < many["compared"] < few["compared"] + (number - number // 4) * 8
    # The rest changes by tens of megabytes from run to run, with what malloc keeps.
    assert many["bytes"] < few["bytes"] + (64 << 20)
