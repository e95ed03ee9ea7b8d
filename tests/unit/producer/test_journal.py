"""The recipe journal survives whatever its writer does not, and is never read as something else."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.journal import (
    LINE_LIMIT,
    Journal,
    JournalError,
    Line,
    after,
    from_text,
    in_force,
    read,
    successor,
    to_text,
)

FIRST = Line(0, 0, "first", "", 4, {"recipe": {"splits": {"raw": 1.0}}})


def grown(journal: Journal, *steps: int) -> Journal:
    for step in steps:
        journal.append(successor(journal.last, step, 4, {"step": step}))
    return journal


def written(folder: Path) -> Path:
    grown(Journal(folder / "journal.jsonl", FIRST), 10, 10, 25).close()
    return folder / "journal.jsonl"


def test_what_was_appended_is_read_again_and_goes_on(tmp_path: Path) -> None:
    path = written(tmp_path)
    again = Journal(path, FIRST)
    assert [line.from_step for line in again.lines] == [0, 10, 10, 25] and not again.fresh
    grown(again, 40).close()
    assert [line.number for line in read(path)] == [0, 1, 2, 3, 4]


def test_the_newest_line_that_has_begun_is_in_force() -> None:
    journal = grown(Journal(None, FIRST), 10, 10, 25)
    assert [journal.at(step).number for step in (0, 9, 10, 24, 25, 10**9)] == [0, 0, 2, 2, 3, 3]
    assert in_force(journal.lines, 9).id == "first"
    assert [line.number for line in after(journal.lines, journal.lines[1].id) or ()] == [2, 3]
    assert after(journal.lines, "unknown") is None


def test_a_line_torn_by_a_crash_is_dropped_at_every_byte(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    begins = whole.rindex(b"\n", 0, -1) + 1
    for end in range(begins, len(whole)):
        path.write_bytes(whole[:end])
        assert len(read(path)) == 3
    path.write_bytes(whole[:-7])
    again = grown(Journal(path, FIRST), 30)
    again.close()
    assert [line.from_step for line in read(path)] == [0, 10, 10, 30]


def test_a_flipped_byte_is_named_and_never_taken_for_another_recipe(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = bytearray(path.read_bytes())
    lines = read(path)
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        try:
            assert read(path) in (lines, lines[:3])  # only a line's end may be lost, and only the last one's
        except JournalError as error:
            assert "journal.jsonl: " in str(error)


@given(st.text(max_size=80) | st.integers().map(str) | st.recursive(st.none(), st.lists, max_leaves=4).map(json.dumps))
def test_what_is_no_line_is_refused(text: str) -> None:
    with pytest.raises(JournalError):
        from_text(text)


def test_a_line_arrives_as_it_was_sent_and_not_if_it_is_too_long() -> None:
    line = successor(FIRST, 3, 4, {"text": "größer", "deep": {"list": [1, 2.5, None]}})
    assert from_text(to_text(line)) == line
    with pytest.raises(JournalError, match="at most"):
        from_text("x" * (LINE_LIMIT + 1))
    for wrong in ({"number": True}, {"units": "4"}, {"body": []}):
        with pytest.raises(JournalError):
            from_text(to_text(replace(line, **wrong)))


def test_an_id_stands_for_all_of_the_past() -> None:
    one = successor(successor(FIRST, 10, 4, {"a": 1}), 20, 4, {"b": 1})
    for other in (
        successor(successor(FIRST, 11, 4, {"a": 1}), 20, 4, {"b": 1}),
        successor(successor(FIRST, 10, 4, {"a": 2}), 20, 4, {"b": 1}),
        successor(successor(replace(FIRST, id="x"), 10, 4, {"a": 1}), 20, 4, {"b": 1}),
    ):
        assert other.id != one.id


def test_a_line_that_does_not_follow_is_refused() -> None:
    journal = grown(Journal(None, FIRST), 10)
    with pytest.raises(JournalError, match="a later entry cannot begin earlier"):
        journal.append(successor(journal.last, 9, 4, {}))
    with pytest.raises(JournalError, match="does not follow"):
        journal.append(replace(successor(journal.last, 12, 4, {}), from_step=11))
    assert len(journal.lines) == 2


def test_another_fleets_journal_is_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(JournalError, match=r"begins with plan first, these producers with other.*recipe.py apply"):
        Journal(path, replace(FIRST, id="other"))


def test_two_coordinators_never_write_one_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", FIRST)
    with pytest.raises(JournalError, match="another coordinator"):
        Journal(tmp_path / "journal.jsonl", FIRST, timeout_s=0.2)
    journal.close()
    Journal(tmp_path / "journal.jsonl", FIRST).close()


def test_how_far_trainers_were_served_is_known_to_the_next_coordinator(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, FIRST)
    for step in (3, 100_000, 7):
        journal.note("t", 5, step)
    journal.note("u", 1, 2)
    journal.close()
    again = Journal(path, FIRST)
    assert again.handed == {"t": (5, 7), "u": (1, 2)} and again.certain


def test_a_note_of_before_the_machine_was_booted_is_not_relied_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    again = Journal(path, FIRST)
    again.note("t", 5, 7)
    again.close()
    monkeypatch.setattr("producer.journal._boot", lambda: "another")
    later = Journal(path, FIRST)
    assert later.handed == {"t": (5, 7)} and not later.certain


def test_a_torn_note_is_one_that_is_not_there(tmp_path: Path) -> None:
    path = written(tmp_path)
    note = path.with_name("journal.jsonl.handed")
    note.write_text('123 {"t": [5,')
    again = Journal(path, FIRST)
    assert again.handed == {} and not again.certain
    again.note("t", 6, 1)
    again.close()
    assert Journal(path, FIRST).handed == {"t": (6, 1)}


def test_a_disk_that_is_full_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    journal = grown(Journal(path, FIRST), 10)
    before = path.read_bytes()

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(JournalError, match="No space left on device; nothing was changed"):
            grown(journal, 20)
    assert path.read_bytes() == before and len(journal.lines) == 2
    grown(journal, 20).close()
    assert len(read(path)) == 3
