"""The shelf: answers survive power cuts, torn lines and flipped bits, and join what curation finds."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from producer.annotate.config import AnnotateError
from producer.annotate.entry import Entry, fused_from
from producer.annotate.join import TAGS, Annotations
from producer.annotate.record import read
from producer.annotate.store import CAPTION, FUSED, Shelf, open_shelf, read_annotations
from producer.scoring import _CAPTION
from producer.source.reader import SourceConfig

SHARD = "photos", "a.tar"
SOURCE = SourceConfig(path=Path("x"), name="photos")


def entry(number: int, **changes: object) -> Entry:
    made = Entry(f"a/{number}", f"sha-{number}", caption=f"A cup, number {number}.", abnormal="no", raw="{}")
    return replace(made, image_type="photograph", image_style="plain", **changes)  # type: ignore[arg-type]


def shelf(out: Path, kind: str = CAPTION, model: str = "m") -> Shelf:
    return open_shelf(out, kind, {"server": model})


def test_what_was_recorded_is_there_for_the_next_process_and_in_the_file_when_the_shard_is_over(tmp_path: Path) -> None:
    first = shelf(tmp_path)
    first.record(*SHARD, [[entry(2)], [entry(0), entry(1, watermark=("a logo", "标志"))]])
    first.record(*SHARD, [[entry(3, reason="cut", detail="too long")]])
    expected = {one.subject: one for one in (entry(0), entry(1, watermark=("a logo", "标志")), entry(2))}
    assert Shelf(first.folder).read(*SHARD) == expected | {"sha-3": entry(3, reason="cut", detail="too long")}
    first.finish(*SHARD)
    (file,) = first.folder.glob("*.parquet")
    assert not list(first.folder.glob("*.jsonl")) and Shelf(first.folder).read(*SHARD).keys() == {
        f"sha-{number}" for number in range(4)
    }
    assert pq.read_table(file)["key"].to_pylist() == [f"a/{number}" for number in range(4)]
    assert set(read_annotations(tmp_path, *SHARD)) == set(expected)


def test_a_later_entry_of_a_picture_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    first = shelf(tmp_path)
    first.record(*SHARD, [[entry(0, reason="cut")]])
    first.finish(*SHARD)
    first.record(*SHARD, [[entry(0)]])
    assert first.read(*SHARD) == {"sha-0": entry(0)}
    # Killed between the new file and the end of its record, both say the same.
    record = next(first.folder.glob("*.jsonl"))
    kept = record.read_bytes()
    first.finish(*SHARD)
    record.write_bytes(kept)
    assert Shelf(first.folder).read(*SHARD) == {"sha-0": entry(0)}


def test_a_torn_or_damaged_line_costs_itself_alone(tmp_path: Path) -> None:
    first = shelf(tmp_path)
    first.record(*SHARD, [[entry(number)] for number in range(3)])
    first.close()
    (record,) = first.folder.glob("*.jsonl")
    raw = record.read_bytes()
    for at in range(len(raw)):
        flipped = bytes([*raw[:at], raw[at] ^ 4, *raw[at + 1 :]])
        record.write_bytes(flipped)
        found = read(record)
        assert len(found) >= (1 if raw[at] == 10 else 2) and set(found) <= {entry(0), entry(1), entry(2)}
    for size in range(len(raw)):
        record.write_bytes(raw[:size])
        assert read(record) == [entry(number) for number in range(raw[:size].count(b"\n") + (raw[size] == 10))]
    again = Shelf(first.folder)
    record.write_bytes(raw[:-20])
    again.record(*SHARD, [[entry(7)]])
    assert read(record) == [entry(0), entry(1), entry(7)]


def test_lines_that_are_no_entries_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"crc": 0, "entries": 3}\n[]\n3\n{"entries": []}\n' + "[" * 100_000 + "\n")
    assert read(path) == []


def test_a_damaged_file_is_an_error_and_never_asked_for_anew_in_silence(tmp_path: Path) -> None:
    first = shelf(tmp_path)
    first.record(*SHARD, [[entry(number)] for number in range(30)])
    first.finish(*SHARD)
    (file,) = first.folder.glob("*.parquet")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(AnnotateError, match=r"\.parquet: damaged .*delete it to have its shard asked again"):
        first.read(*SHARD)
    file.write_bytes(b"no parquet")
    with pytest.raises(AnnotateError, match="damaged"):
        read_annotations(tmp_path, *SHARD)


def test_the_annotator_begun_last_counts_and_an_earlier_one_where_it_says_nothing(tmp_path: Path) -> None:
    old, new = shelf(tmp_path, model="old"), shelf(tmp_path, model="new")
    old.record(*SHARD, [[entry(0), entry(1), entry(2)]])
    new.record(*SHARD, [[entry(0, caption="Newer."), entry(1, reason="cut", caption="")]])
    assert shelf(tmp_path, model="old").folder == old.folder != new.folder
    found = read_annotations(tmp_path, *SHARD)
    assert [found[f"sha-{number}"].caption for number in range(3)] == ["Newer.", entry(1).caption, entry(2).caption]
    assert read_annotations(old.folder, *SHARD)["sha-0"].caption == entry(0).caption
    (old.folder / "annotator.json").write_text('{"version": 9, "number": 1, "kind": "caption"}')
    with pytest.raises(AnnotateError, match=r"annotator\.json: version 9 of caption, this release reads 1"):
        read_annotations(tmp_path, *SHARD)


def scores() -> pa.Table:
    """Four rows as scoring leaves them: two captions, one, none, and an edit."""
    raw, long = {"split": "raw", "text": "cup"}, {"split": "recaption", "text": "A cup from elsewhere."}
    place = {"member": "r", "offset": 0, "size": 1}
    rows = [
        {"captions": [raw, long], "references": [], "score.seen": [0.5, 0.7], "note.seen": ["a", "b"]},
        {"captions": [raw], "references": [], "score.seen": [0.5], "note.seen": ["a"]},
        {"captions": [], "references": [], "score.seen": [], "note.seen": []},
        {"captions": [raw], "references": [place], "score.seen": [0.5], "note.seen": ["a"]},
    ]
    for number, row in enumerate(rows):
        row |= {"shard": "a.tar", "sha256": f"sha-{number}", "score.caption": float(len(row["captions"]))}
    lists = [("score.seen", pa.list_(pa.float64())), ("note.seen", pa.list_(pa.string()))]
    shape = [("shard", pa.string()), ("sha256", pa.string()), ("captions", pa.list_(_CAPTION)), *lists]
    reference = pa.list_(pa.struct([(name, pa.string() if name == "member" else pa.int64()) for name in place]))
    shape += [("references", reference), ("score.caption", pa.float64())]
    return pa.Table.from_pylist(rows, schema=pa.schema(shape))


def test_captions_and_tags_join_by_the_bytes_of_the_picture(tmp_path: Path) -> None:
    said = [entry(0), entry(1, watermark=("标志",), abnormal="yes"), entry(2), entry(3)]
    shelf(tmp_path).record(*SHARD, [said])
    fused = Entry("a/1", fused_from("cup", said[1].caption), caption="A fused cup.")
    other = Entry("a/0", fused_from("another", said[0].caption), caption="Of another raw caption.")
    shelf(tmp_path, FUSED).record(*SHARD, [[fused, other]])
    annotations = Annotations([tmp_path], SOURCE)
    joined = annotations.join(scores())
    annotations.check()
    assert annotations.tags == TAGS
    texts = [{one["split"]: one["text"] for one in row} for row in joined["captions"].to_pylist()]
    assert texts == [
        {"raw": "cup", "recaption": said[0].caption},
        {"fused": "A fused cup.", "raw": "cup", "recaption": said[1].caption},
        {"recaption": said[2].caption},
        {"raw": "cup"},
    ]
    assert [list(row) for row in texts] == [sorted(row) for row in texts]
    assert joined["score.caption"].to_pylist() == [2, 3, 1, 1]
    assert joined["score.seen"].to_pylist() == [[0.5, None], [None, 0.5, None], [None], [0.5]]
    assert joined["note.seen"].to_pylist() == [["a", ""], ["", "a", ""], [""], ["a"]]
    assert [joined[f"tag.{name}"].to_pylist() for name in TAGS] == [
        ["photograph", "photograph", "photograph", ""],
        ["plain", "plain", "plain", ""],
        ["[]", '["标志"]', "[]", ""],
        ["no", "yes", "no", ""],
    ]


def test_without_annotations_nothing_changes_and_a_folder_without_any_is_named(tmp_path: Path) -> None:
    nothing = Annotations([], SOURCE)
    assert nothing.join(scores()) == scores() and nothing.tags == ()
    nothing.check()
    with pytest.raises(AnnotateError, match=r"holds no annotations; run launch/annotate\.py"):
        Annotations([tmp_path], SOURCE)
    shelf(tmp_path)
    elsewhere = Annotations([tmp_path], SourceConfig(path=Path("x"), name="elsewhere"))
    empty = elsewhere.join(scores())
    assert empty["tag.image_type"].to_pylist() == [""] * 4 and empty.select(scores().column_names) == scores()
    with pytest.raises(
        AnnotateError, match=r"is of a picture of this source; was source\.name another than 'elsewhere'"
    ):
        elsewhere.check()


def test_annotators_are_told_apart_by_what_they_are_asked(tmp_path: Path) -> None:
    first = shelf(tmp_path)
    said = json.loads((first.folder / "annotator.json").read_text())
    assert (said["number"], said["kind"], said["server"]) == (1, "caption", "m")
    assert json.loads((shelf(tmp_path, FUSED).folder / "annotator.json").read_text())["number"] == 2
