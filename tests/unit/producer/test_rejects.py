"""The journal of rejects: durable, shared by processes, and never confused by a line that a crash cut short."""

import json
import multiprocessing
import resource
from pathlib import Path

import pytest

from producer.api.unit import UnitId
from producer.rejects import Rejects, RejectsError

UNIT = UnitId("train", 3, 1)


def test_what_one_process_adds_every_other_knows(tmp_path: Path) -> None:
    one, other = Rejects(tmp_path / "r.jsonl"), Rejects(tmp_path / "r.jsonl")
    assert other.known("p", UNIT) == {}
    one.add("p", UNIT, [("a", "broken"), ("b", "füll")])
    assert other.known("p", UNIT) == {"a": "broken", "b": "füll"} == one.known("p", UNIT)
    assert other.known("q", UNIT) == other.known("p", UnitId("train", 3, 2)) == {}
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"plan": "p", "unit": ["train", 3, 1], "key": "a", "reason": "broken"}


def test_nothing_rejected_writes_nothing(tmp_path: Path) -> None:
    Rejects(tmp_path / "r.jsonl").add("p", UNIT, [])
    assert not (tmp_path / "r.jsonl").exists()


@pytest.mark.parametrize(
    "torn", [b'{"plan": "p", "un', b'{"plan": "p", "unit": ["train", 3, 1], "key": "x", "reason": "y"}']
)
def test_a_line_cut_short_loses_itself_alone(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "r.jsonl"
    Rejects(path).add("p", UNIT, [("a", "1")])
    with path.open("ab") as file:
        file.write(torn)
    reader = Rejects(path)
    assert reader.known("p", UNIT) == {"a": "1"}
    Rejects(path).add("p", UNIT, [("b", "2")])
    assert reader.known("p", UNIT).items() >= {"a": "1", "b": "2"}.items()
    assert reader.torn == (0 if torn.endswith(b"}") else 1)


def test_a_full_disk_is_an_error_since_the_unit_must_not_be_served(tmp_path: Path) -> None:
    rejects = Rejects(tmp_path / "r.jsonl")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(RejectsError, match=r"r.jsonl: "):
            rejects.add("p", UNIT, [("a", "1")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    rejects.add("p", UNIT, [("a", "1")])
    assert Rejects(tmp_path / "r.jsonl").known("p", UNIT) == {"a": "1"}


def _add(path: str, name: str) -> None:
    rejects = Rejects(Path(path))
    for n in range(50):
        rejects.add("p", UnitId("train", n, 0), [(f"{name}-{n}", "x" * 200)])


def test_processes_append_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "r.jsonl")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add, args=(path, name)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    reader = Rejects(Path(path))
    for n in range(50):
        assert reader.known("p", UnitId("train", n, 0)).keys() == {f"{name}-{n}" for name in "abc"}
    assert reader.torn == 0
