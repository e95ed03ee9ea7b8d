"""What goes into a unit comes out of it, or the unit is refused."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from producer.api.unit import SCHEMA, Encoded, Header, Latent, UnitError, UnitId, checksum, header_of, pack, unpack

HEADER = Header("plan", UnitId("train", 3, 1), "encoder", rejected=2)


def latent(height: int, width: int, channels: int = 2, seed: int = 0) -> Latent:
    planes = np.random.default_rng(seed).standard_normal((2, channels, height // 8, width // 8)).astype(np.float16)
    return Latent(height, width, planes[0], planes[1])


def sample(key: str = "shard/0", tokens: int = 3, references: tuple[Latent, ...] = ()) -> Encoded:
    text = np.random.default_rng(tokens).integers(0, 1 << 16, (tokens, 4), np.uint16)
    return Encoded(key, "photos", "shard.tar", "t2i", "raw", "ein Hündchen, 小狗", latent(32, 16), text, references)


def same(a: Encoded, b: Encoded) -> bool:
    names = ("key", "source", "shard", "task", "split", "caption")
    latents = zip((a.latent, *a.references), (b.latent, *b.references), strict=True)
    return (
        [getattr(a, name) for name in names] == [getattr(b, name) for name in names]
        and np.array_equal(a.text, b.text)
        and all(
            (x.height, x.width) == (y.height, y.width)
            and np.array_equal(x.mean, y.mean)
            and np.array_equal(x.logvar, y.logvar)
            for x, y in latents
        )
    )


def to_bytes(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def from_bytes(raw: bytes) -> pa.RecordBatch:
    with pa.ipc.open_stream(raw) as reader:
        return reader.read_next_batch()


def with_column(batch: pa.RecordBatch, name: str, values: list[object]) -> pa.RecordBatch:
    at = batch.schema.get_field_index(name)
    return batch.set_column(at, batch.schema.field(at), pa.array(values, batch.schema.field(at).type))


def test_a_unit_comes_back_from_its_bytes_as_it_was() -> None:
    samples = [sample("a/0", 3), sample("a/1", 7), sample("b/2", 1)]
    header, found = unpack(from_bytes(to_bytes(pack(HEADER, samples))))
    assert header == HEADER
    assert header_of(pack(HEADER, samples)) == HEADER
    assert len(found) == 3 and all(same(a, b) for a, b in zip(samples, found, strict=True))
    assert found[1].text.dtype == np.uint16 and found[1].latent.mean.dtype == np.float16


def test_references_keep_their_own_sizes() -> None:
    edit = replace(sample(references=(latent(16, 48, seed=1), latent(64, 16, seed=2))), task="ti2i")
    _, [found] = unpack(from_bytes(to_bytes(pack(HEADER, [edit]))))
    assert same(edit, found)
    assert [(r.height, r.width) for r in found.references] == [(16, 48), (64, 16)]


def test_a_unit_whose_samples_were_all_rejected_has_no_rows() -> None:
    header, found = unpack(from_bytes(to_bytes(pack(HEADER, []))))
    assert (header, found) == (HEADER, [])


def test_the_empty_prompt_is_a_row_with_a_latent_of_no_size() -> None:
    empty = replace(sample("", 5), latent=latent(0, 0), caption="")
    _, [found] = unpack(from_bytes(to_bytes(pack(HEADER, [empty]))))
    assert found.key == "" and found.latent.mean.shape == (2, 0, 0) and same(empty, found)


def test_a_prompt_without_tokens_is_kept_as_such() -> None:
    _, [found] = unpack(pack(HEADER, [replace(sample(), text=np.zeros((0, 4), np.uint16))]))
    assert found.text.shape == (0, 0)


def test_arrays_that_are_not_contiguous_are_packed_by_their_values() -> None:
    turned = replace(sample(), text=sample(tokens=4).text.T)
    _, [found] = unpack(pack(HEADER, [turned]))
    assert same(turned, found)


@pytest.mark.parametrize("flip", [*(1 << bit for bit in range(8)), 0xFF])
def test_every_flipped_byte_is_refused_or_harmless(flip: int) -> None:
    samples = [sample("a/0", 3, (latent(16, 16),)), sample("a/1", 2)]
    raw = to_bytes(pack(HEADER, samples))
    refused = 0
    for place in range(len(raw)):
        damaged = bytearray(raw)
        damaged[place] ^= flip
        try:
            batch = from_bytes(bytes(damaged))
        except (pa.ArrowException, OSError, StopIteration):
            refused += 1  # Arrow itself cannot read it
            continue
        try:
            header, found = unpack(batch)
        except UnitError:
            refused += 1
            continue
        assert header == HEADER, f"byte {place} changed the header unnoticed"
        assert len(found) == 2 and all(same(a, b) for a, b in zip(samples, found, strict=True)), f"byte {place}"
    values = sum(s.text.nbytes + s.latent.mean.nbytes * 2 for s in samples)
    assert refused >= values, "not even every byte of the samples' values was noticed"


def test_a_lost_row_is_noticed() -> None:
    batch = pack(HEADER, [sample("a/0"), sample("a/1")])
    with pytest.raises(UnitError, match="train step 3 unit 1: 1 rows, the header says 2"):
        unpack(batch.slice(0, 1))


def test_a_checksum_that_differs_names_the_sample() -> None:
    batch = pack(HEADER, [sample("a/0"), sample("a/1")])
    with pytest.raises(UnitError, match="train step 3 unit 1, sample 'a/1': checksum differs"):
        unpack(with_column(batch, "tokens", [3, 4]))


def test_a_unit_of_another_version_says_which() -> None:
    batch = pack(HEADER, [])
    said = json.dumps({"version": 1})
    newer = batch.replace_schema_metadata({"inkstone.unit": said, "inkstone.crc": str(zlib.crc32(said.encode()))})
    with pytest.raises(UnitError, match="unit version 1, this reader knows 2"):
        unpack(newer)


def test_a_batch_of_something_else_is_no_unit() -> None:
    with pytest.raises(UnitError, match="not a unit"):
        unpack(pa.record_batch({"key": ["a"]}))
    batch = pack(HEADER, [sample()])
    with pytest.raises(UnitError, match="its columns are not"):
        unpack(batch.drop_columns(["logvar"]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("plane", ["mean", "logvar"])
def test_a_latent_that_is_not_finite_is_refused(plane: str, value: float) -> None:
    bad = latent(32, 16)
    getattr(bad, plane)[1, 0, 0] = value
    with pytest.raises(UnitError, match=f"sample 'shard/0': {plane} holds NaN or infinity"):
        unpack(pack(HEADER, [replace(sample(), latent=bad)]))


def test_a_picture_that_is_no_multiple_of_16_is_refused() -> None:
    with pytest.raises(UnitError, match="a picture of 24x16 is no multiple of 16"):
        unpack(pack(HEADER, [replace(sample(), latent=latent(24, 16))]))


def test_sizes_that_do_not_add_up_are_refused() -> None:
    wrong = latent(32, 16)
    with pytest.raises(UnitError, match=r"mean holds 16 values, \(2, 4, 4\) needs 32"):
        unpack(pack(HEADER, [replace(sample(), latent=replace(wrong, width=32))]))
    with pytest.raises(UnitError, match="a picture"):
        unpack(pack(HEADER, [replace(sample(), references=(replace(wrong, height=40),))]))


def test_text_that_does_not_divide_into_its_tokens_is_refused() -> None:
    batch = _resealed(pack(HEADER, [sample(tokens=3)]), tokens=5)
    with pytest.raises(UnitError, match="12 text values are no multiple of 5 tokens"):
        unpack(batch)
    with pytest.raises(UnitError, match="12 text values are no multiple of 0 tokens"):
        unpack(_resealed(pack(HEADER, [sample(tokens=3)]), tokens=0))


def _resealed(batch: pa.RecordBatch, **changes: object) -> pa.RecordBatch:
    """`batch` of one row with values changed and its checksum made anew, as by a faulty writer."""
    [row] = batch.to_pylist()
    row |= changes
    binary = {name: memoryview(row[name]) for name in ("mean", "logvar", "text")}
    row["checksum"] = checksum({**row, **binary})
    return pa.RecordBatch.from_pylist([row], schema=SCHEMA.with_metadata(batch.schema.metadata))


def test_an_id_reads_as_words() -> None:
    assert str(UnitId("train", 3, 1)) == "train step 3 unit 1"
