"""An operator, or a picture, that ends the process costs the sample that ended two, and nothing else."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from producer.deaths import Deaths, at_work
from producer.operator.stage import OperatorsConfig, build_stage
from producer.scoring import Job, count_failed, read_scores, score_shard
from producer.source.reader import SourceConfig, open_source
from tests.unit.producer import deadly
from tests.unit.producer.test_scoring import jpeg, write

ROOT = Path(__file__).parents[3]
HANG_S = 8.0  # long for what is asked here
NAMES = ("astronaut", "coffee", "rocket", "chelsea", "moon")


def job(folder: Path, scores: str) -> tuple[Job, dict[str, str]]:
    """Five photographs in batches of three, and the row of their shard."""
    source = SourceConfig(path=folder / "raw")
    if not (folder / "raw").exists():
        write(folder / "raw", {name: (jpeg(name), f"a {name}") for name in NAMES}, "a.tar")
    (shard,) = open_source(source).shards()
    made = Job(source=source, operators=OperatorsConfig(), scores=folder / scores, batch=3, hang_s=HANG_S)
    return made, {"shard": json.dumps(shard), "path": str(folder / scores / "f" / "a.parquet")}


@pytest.mark.parametrize(("what", "how"), [("file_size", "kill"), ("reading it", "kill"), ("reading it", "hang")])
def test_a_sample_that_ends_two_processes_is_left_to_the_third(tmp_path: Path, what: str, how: str) -> None:
    made, row = job(tmp_path, "deadly")
    line = [sys.executable, deadly.__file__, made.model_dump_json(), json.dumps(row), what, "a/coffee", how]
    codes, told = [], ""
    # Reading is noted sample by sample; the operator is asked about its batch first.
    for _ in range(4 if what == "file_size" else 3):
        done = subprocess.run(
            line, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
        )
        codes.append(done.returncode)
        told = done.stdout
    ended = 1 if how == "hang" else -signal.SIGKILL
    assert codes == [ended] * (len(codes) - 1) + [0], done.stderr[-2000:]
    assert json.loads(told)["error"] == ""
    assert [path.name for path in Path(row["path"]).parent.iterdir()] == ["a.parquet"], "files of deaths are left"

    plain, plain_row = job(tmp_path, "plain")
    score_shard(plain_row, plain.model_dump_json())
    found, whole = (read_scores(Path(one["path"])) for one in (row, plain_row))
    assert found is not None and whole is not None
    failed, example = count_failed(found, build_stage(made.operators))
    for one, other in zip(found.to_pylist(), whole.to_pylist(), strict=True):
        if one["key"] != "a/coffee":
            assert one == other
        elif what == "file_size":
            assert {name for name in one if one[name] != other[name]} >= {"failed.file_size", "score.file_size"}
            assert one["failed.file_size"] == "2 processes ended at it" and one["score.broken"] == other["score.broken"]
        else:
            assert "2 processes ended at it" in one["note.broken"] and one["width"] == 0
    assert failed == ({"file_size": 1} if what == "file_size" else {})
    assert example == ("a/coffee: 2 processes ended at it" if failed else "")


def test_who_looks_on_sees_each_batch_begin(tmp_path: Path) -> None:
    deaths, seen = Deaths(tmp_path / "a.parquet"), [at_work(tmp_path)]
    for first in (0, 16, 32):
        with deaths.at("clarity", first, 16):
            seen.append(at_work(tmp_path))
    assert len({str(one) for one in seen}) == 4
    deaths.close(forget=True)
    assert at_work(tmp_path) == {}


def test_what_ended_is_known_to_the_next_and_forgotten_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "scores" / "x.parquet"
    for number in range(3):
        deaths = Deaths(path)  # the one before is gone without a word
        assert deaths.count("clarity", 16, 4) == number and not deaths.count("clarity", 0, 4)
        with deaths.at("texture", 0, 4):
            pass
        whereabouts = deaths.at("clarity", 16, 4)
        whereabouts.__enter__()
    deaths = Deaths(path)
    assert deaths.count("clarity", 16, 4) == 3 and not deaths.count("texture", 0, 4)
    deaths.close(forget=False)
    deaths = Deaths(path)
    assert deaths.count("clarity", 16, 4) == 3, "an end in good order is none"
    deaths.close(forget=True)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("said", ["", "[1", '["clarity"]', '["clarity", "x", 1]', "null\n{}", "\x00"])
def test_half_written_notes_say_nothing(tmp_path: Path, said: str) -> None:
    path = tmp_path / "x.parquet"
    path.with_name("x.parquet.now").write_text(said)
    deaths = Deaths(path)
    assert not deaths._before
    deaths.close(forget=True)
