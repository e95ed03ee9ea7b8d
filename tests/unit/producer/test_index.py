"""The index: generations appear whole, never change, and are checked when they are opened."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from producer.index import Index, IndexFormatError, schema, write_generation
from producer.lock import LockError, exclusive
from tests.unit.producer.rows import table

OPERATORS = {"aesthetic": {"version": 1, "min": 4.5}}


def publish(path: Path, rows: pa.Table | None = None, tokenizer: str = "qwen") -> str:
    return write_generation(path, table(20) if rows is None else rows, tokenizer=tokenizer, operators=OPERATORS)


def test_what_was_written_is_what_is_opened(tmp_path: Path) -> None:
    id = publish(tmp_path / "deep" / "index")
    index = Index.open(tmp_path / "deep" / "index")
    assert (index.id, index.tokenizer, index.operators) == (id, "qwen", OPERATORS)
    assert index.table.equals(table(20))
    assert index.path.name == "gen-00001"


def test_the_same_rows_make_no_new_generation_and_others_do(tmp_path: Path) -> None:
    first = publish(tmp_path)
    assert publish(tmp_path) == first
    assert sorted(entry.name for entry in tmp_path.glob("gen-*")) == ["gen-00001"]
    others = {publish(tmp_path, table(21)), publish(tmp_path, table(21), tokenizer="another")}
    assert first not in others and len(others) == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "gen-00001", "gen-00002", "gen-00003"]
    assert Index.open(tmp_path).table.num_rows == 21
    assert Index.open(tmp_path, "gen-00001").id == first


def test_an_id_depends_on_content_alone(tmp_path: Path) -> None:
    assert publish(tmp_path / "one") == publish(tmp_path / "two")
    for name in ("rows.parquet", "generation.json"):
        one, two = ((tmp_path / index / "gen-00001" / name).read_bytes() for index in ("one", "two"))
        assert one == two


@pytest.mark.parametrize("where", [0.001, 0.3, 0.6, 0.999])
def test_a_flipped_bit_anywhere_is_found_and_named(tmp_path: Path, where: float) -> None:
    publish(tmp_path)
    path = tmp_path / "gen-00001" / "rows.parquet"
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * where)] ^= 4
    path.write_bytes(raw)
    with pytest.raises(IndexFormatError, match=r"gen-00001/rows.parquet: damaged.*delete gen-00001 to fall back"):
        Index.open(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "generation.json").unlink(), "generation.json: No such file"),
        (lambda folder: (folder / "rows.parquet").unlink(), "rows.parquet: No such file"),
        (lambda folder: (folder / "generation.json").write_text("{"), "generation.json: not JSON"),
        (lambda folder: (folder / "generation.json").write_text("[]"), "version None, this release reads 3"),
        (lambda folder: (folder / "generation.json").write_text('{"version": 1}'), "version 1, this release reads 3"),
        (lambda folder: (folder / "generation.json").write_text('{"version": 3}'), r"lacks \['id', 'operators'"),
        (lambda folder: change(folder, tokenizer="forged"), "changed after it was written"),
        (lambda folder: change(folder, rows=19), "changed after it was written"),
    ],
)
def test_a_damaged_generation_is_named_and_a_new_one_can_be_written_after_it(
    tmp_path: Path, damage: object, message: str
) -> None:
    id = publish(tmp_path)
    assert callable(damage)
    damage(tmp_path / "gen-00001")
    with pytest.raises(IndexFormatError, match=message) as caught:
        Index.open(tmp_path)
    assert "gen-00001" in str(caught.value)
    assert publish(tmp_path) == id
    assert Index.open(tmp_path).path.name == "gen-00002"


def change(folder: Path, **fields: object) -> None:
    path = folder / "generation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_an_index_without_a_generation_says_how_to_make_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(IndexFormatError, match=r"holds no generation; run launch/curate\.py"):
            Index.open(path)
    with pytest.raises(IndexFormatError, match="gen-00007"):
        Index.open(tmp_path, "gen-00007")


def test_rows_that_are_not_sorted_by_unique_keys_are_refused(tmp_path: Path) -> None:
    rows = table(5)
    for wrong in (rows.take([0, 1, 1, 2]), rows.take([1, 0])):
        with pytest.raises(IndexFormatError, match="sorted by unique keys"):
            publish(tmp_path, wrong)
    with pytest.raises(IndexFormatError, match="columns"):
        publish(tmp_path, rows.drop_columns(["kept"]))
    assert not list(tmp_path.glob("gen-*"))
    assert publish(tmp_path, rows.slice(0, 0))


def test_a_writer_that_dies_leaves_no_half_generation(tmp_path: Path) -> None:
    """SIGKILL just before the rename; the next writer clears what was aside."""
    script = (
        "import os, signal, sys, pathlib\n"
        "os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from tests.unit.producer.test_index import publish\n"
        "publish(pathlib.Path(sys.argv[1]))\n"
    )
    child = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[3], check=False)
    assert child.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".writing-*"))) == 1
    with pytest.raises(IndexFormatError, match="no generation"):
        Index.open(tmp_path)
    publish(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "gen-00001"]


def test_writers_at_the_same_time_take_turns(tmp_path: Path) -> None:
    ids: list[str] = []
    threads = [threading.Thread(target=lambda n=n: ids.append(publish(tmp_path, table(10 + n)))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {Index.open(tmp_path, f"gen-{n:05d}").id for n in (1, 2, 3, 4)} == set(ids)


def test_a_lock_that_is_held_is_waited_for_no_longer_than_said(tmp_path: Path) -> None:
    second = exclusive(tmp_path / "lock", timeout_s=0.2)
    with exclusive(tmp_path / "lock", timeout_s=0), pytest.raises(LockError, match=r"lock: held .* for 0.2 s"):
        second.__enter__()
    with exclusive(tmp_path / "lock", timeout_s=0):
        pass


def test_the_schema_has_score_verdict_and_reason_of_each_operator() -> None:
    names = schema(["one", "two"]).names
    assert names[-9:] == [
        "score.one",
        "verdict.one",
        "reason.one",
        "score.two",
        "verdict.two",
        "reason.two",
        "kept",
        "dropped_by",
        "reason",
    ]
