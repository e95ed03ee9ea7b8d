"""Images in parquet: every row has its place, one image is read without the file, and own columns are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from producer.source import parquet
from producer.source.pages import PageError, check_chunk
from producer.source.parquet import Parquet, ParquetConfig
from producer.source.shard import RawSample, SourceError, UnreadableError
from producer.source.store import File, LocalStore

ROWS = 40


def images(size: int = 3_000) -> list[bytes]:
    """Bytes of different lengths, that nothing compresses."""
    draw = np.random.default_rng(0)
    return [draw.bytes(size + 7 * row) for row in range(ROWS)]


def write(path: Path, values: Any = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": images() if values is None else values, "caption": [f"words {row}" for row in range(ROWS)]}
    pq.write_table(pa.table(columns), path, **({"row_group_size": 16} | options))
    return path


class Counted(LocalStore):
    """A folder that says what is read of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads: list[tuple[int, int]] = []

    def read(self, name: str, offset: int, size: int) -> bytes:
        self.reads.append((offset, size))
        return super().read(name, offset, size)

    def open(self, name: str) -> Any:
        self.reads.append((0, -1))
        return super().open(name)


def listed(reader: Parquet) -> list[RawSample]:
    return [sample for shard in reader.shards() for sample in reader.samples(shard)]


PLAIN = {"compression": "NONE", "use_dictionary": False}


@pytest.mark.parametrize(
    "options",
    [PLAIN, PLAIN | {"data_page_version": "2.0"}, PLAIN | {"data_page_size": 5_000}, PLAIN | {"write_page_index": True},
     PLAIN | {"write_page_checksum": True}, {"compression": "zstd"}, {}, {"row_group_size": 1}],
)  # fmt: skip
def test_a_worker_reads_every_row_from_its_place_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    store = Counted(write(tmp_path / "set/a.parquet", **options).parent)
    found = listed(Parquet(store, ParquetConfig()))
    assert [sample.key for sample in found] == [f"a/{row:08d}" for row in range(ROWS)]
    assert [sample.captions for sample in found] == [{"raw": f"words {row}"} for row in range(ROWS)]
    assert [sample.image for sample in found] == images()
    store.reads.clear()
    worker = Parquet(store, ParquetConfig())
    order = np.random.default_rng(1).permutation(ROWS)
    for row in order:
        sample = found[row]
        assert worker.read(sample.shard, sample.member, sample.offset, sample.size) == images()[row]
    if options.get("compression") == "NONE":
        # One range of an image's own bytes each: what a tar costs.
        assert store.reads == [(found[row].offset, found[row].size) for row in order]
    else:
        assert {sample.offset for sample in found} == {-1} and set(store.reads) == {(0, -1)}


def test_images_that_are_alike_or_repeat_have_each_their_own_place(tmp_path: Path) -> None:
    same = [b"\5\0\0\0words" * 9] * ROWS
    path = write(tmp_path / "a.parquet", same, **PLAIN)
    found = listed(Parquet(LocalStore(tmp_path), ParquetConfig()))
    raw = path.read_bytes()
    assert len({sample.offset for sample in found}) == ROWS
    assert all(raw[sample.offset : sample.offset + sample.size] == same[0] for sample in found)


def test_columns_are_named_by_the_config_and_structs_are_opened(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": raw, "path": f"{n}.jpg"} for n, raw in enumerate(images())]
    table = pa.table({"picture": pa.array(rows, kind), "alt": ["a"] * ROWS, "long": ["b"] * ROWS, "extra": [0] * ROWS})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=16, **PLAIN)
    config = ParquetConfig(image="picture", captions={"raw": "alt", "recaption": "long"})
    reader = Parquet(LocalStore(tmp_path), config)
    found = listed(reader)
    assert [sample.captions for sample in found] == [{"raw": "a", "recaption": "b"}] * ROWS
    assert all(sample.offset > 0 for sample in found)
    assert reader.read("a.parquet", "1/3", -1, len(images()[19])) == images()[19]
    (sample,) = listed(Parquet(LocalStore(tmp_path), ParquetConfig(image="photo")))
    assert sample.fault == ("cannot be read: no column 'photo' among picture, alt, long, extra; set source.parquet")


def test_what_changed_since_curation_is_left_out_and_no_place_leads_outside(tmp_path: Path) -> None:
    write(tmp_path / "set/a.parquet", compression="zstd")
    reader = Parquet(LocalStore(tmp_path / "set"), ParquetConfig())
    for member, message in (
        ("0/3", "has 3021 bytes, 9 when curated"), ("0/99", "row group 0 has only 16 rows"), ("9/0", "row 9/0"),
        ("-1/0", "is no row"), ("x", "is no row"), ("", "is no row"), ("0/-1", "is no row"), ("1/2/3", "is no row"),
    ):  # fmt: skip
        with pytest.raises(UnreadableError, match=message):
            reader.read("a.parquet", member, -1, 9)
    for shard in ("../a.parquet", "/etc/passwd", "a\0.parquet", ""):
        for offset in (-1, 5):
            with pytest.raises(SourceError, match="not below"):
                reader.read(shard, "0/0", offset, 9)
    write(tmp_path / "set/a.parquet", images(10), compression="zstd")
    with pytest.raises(UnreadableError):
        Parquet(LocalStore(tmp_path / "set"), ParquetConfig()).read("a.parquet", "0/0", -1, 3_000)


def test_a_row_group_that_would_be_dear_for_one_image_is_refused_unless_its_images_have_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_MAX_GROUP", 1_000)
    write(tmp_path / "a.parquet", **PLAIN)
    write(tmp_path / "b.parquet", compression="zstd")
    found = listed(Parquet(LocalStore(tmp_path), ParquetConfig()))
    assert [sample.key.partition("/")[0] for sample in found if sample.fault] == ["b"] * ROWS
    assert "write smaller row groups" in found[-1].fault


def test_a_damaged_row_group_costs_itself_and_the_others_are_delivered(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", compression="zstd")
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    raw = bytearray(path.read_bytes())
    raw[start : start + 300] = bytes(300)
    path.write_bytes(raw)
    found = listed(Parquet(LocalStore(tmp_path), ParquetConfig()))
    good = [sample.key for sample in found if not sample.fault]
    assert good == [f"a/{row:08d}" for row in (*range(16), *range(32, ROWS))]
    (bad,) = (sample for sample in found if sample.fault)
    assert bad.key == "a/(damaged-00001)" and "row group 1, said to hold 16 rows" in bad.fault


def test_a_shard_that_must_not_be_opened_is_one_entry(tmp_path: Path) -> None:
    class Refusing(LocalStore):
        def files(self, ending: str) -> list[File]:
            return [File("../x.parquet", 5, "s", "refused: it leads out")]

    (sample,) = listed(Parquet(Refusing(tmp_path), ParquetConfig()))
    assert (sample.key, sample.fault) == ("%2E%2E/x.parquet/(refused)", "refused: it leads out")


def test_page_headers_without_an_end_are_named() -> None:
    for raw in (
        b"\x15" * 500,
        b"\x1c" * 500,
        b"\x15" + b"\xff" * 500,
        b"\x19\x4c" + bytes(500),
        b"\x18\xff\xff\xff\x7f",
    ):
        with pytest.raises(PageError):
            check_chunk(lambda offset, size, raw=raw: raw[offset : offset + size], 0, len(raw))
