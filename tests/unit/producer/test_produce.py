"""A unit's id becomes the unit: by the real plan, source, cache, journal and encoders (tiny ones)."""

import json
import random
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from producer import produce
from producer.api.unit import UnitId, unpack
from producer.cache import CacheConfig
from producer.encoder_config import EncoderConfig
from producer.produce import EncodeJob, UnitMaker
from producer.recipe import RecipeConfig
from producer.source.reader import SourceConfig
from producer.source.shard import SourceError
from producer.worker import MakerBrokenError
from tests.unit.producer.farm import until
from tests.unit.producer.photos import BROKEN, captions, jpeg, make_photos


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of pictures and an index of them."""
    return make_photos(tmp_path_factory.mktemp("produce"))


def job(raw: Path, encoders: Path, own: Path) -> EncodeJob:
    return EncodeJob(
        index=raw / "index",
        rejects=own / "rejects.jsonl",
        seed=3,
        cost=(100, 1),
        source=SourceConfig(path=raw / "raw"),
        recipe=RecipeConfig(resolutions=(64,), aspects=("1:1",), units=2, samples=5, validation_samples=2),
        encoder=EncoderConfig(root=encoders, picture_batch=2, text_batch=4),
        cache=CacheConfig(path=own / "cache"),
    )


def units() -> list[UnitId]:
    ids = [UnitId("train", step, unit) for step in range(2) for unit in range(2)]
    return [*ids, UnitId("validation", 0, 0), UnitId("empty", 0, 0)]


def made(maker: UnitMaker) -> dict[UnitId, tuple[bytes, int]]:
    found = {}
    for unit in units():
        batch, rejected = maker(unit)
        found[unit] = (batch.serialize().to_pybytes(), rejected)
    maker.close()
    return found


def journal(own: Path) -> list[dict[str, object]]:
    path = own / "rejects.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def first(
    raw: Path, encoders: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[UnitId, tuple[bytes, int]]]:
    """What a maker with an empty cache makes, and the folder of its cache and journal."""
    own = tmp_path_factory.mktemp("first")
    return own, made(UnitMaker(job(raw, encoders, own)))


def own_copy(first: tuple[Path, dict[UnitId, tuple[bytes, int]]], to: Path) -> Path:
    shutil.copytree(first[0], to / "own")
    return to / "own"


First = tuple[Path, dict[UnitId, tuple[bytes, int]]]


def test_a_unit_holds_the_samples_of_the_plan_with_provenance(
    raw: Path, encoders: Path, first: First, tmp_path: Path
) -> None:
    maker = UnitMaker(job(raw, encoders, own_copy(first, tmp_path)))
    plan = maker._plan.step(1)[1]
    header, samples = unpack(maker(UnitId("train", 1, 1))[0])
    assert (header.plan, header.encoder, header.unit) == (maker.offer.plan, maker.offer.encoder, UnitId("train", 1, 1))
    planned = [f"photos/{row:03d}" for row in plan.rows]
    assert [sample.key for sample in samples] == [key for key in planned if key != BROKEN]
    assert header.rejected == planned.count(BROKEN)
    for sample in samples:
        number = int(sample.key[-3:])
        assert (sample.source, sample.shard, sample.split, sample.task) == ("photos", "photos.tar", "raw", "t2i")
        assert sample.caption == captions(number)[0]["text"]
        assert (sample.latent.height, sample.latent.width) == (64, 64)
    _, (empty,) = unpack(maker(UnitId("empty", 0, 0))[0])
    assert (empty.key, empty.latent.mean.shape[1:]) == ("", (0, 0)) and len(empty.text)
    assert maker.offer.units == 2 and maker.offer.validation_units == 1


def test_a_picture_that_does_not_decode_is_left_out_and_journaled_once_a_unit(first: First) -> None:
    own, found = first
    lines = journal(own)
    short = [unit for unit, (_, rejected) in found.items() if rejected]
    assert short and all(found[unit][1] == 1 for unit in short)
    assert [tuple(line["unit"]) for line in lines] == [tuple(unit) for unit in short]  # type: ignore[arg-type]
    assert {line["key"] for line in lines} == {BROKEN}
    assert all(str(line["reason"]).startswith("picture: ") for line in lines)


@pytest.mark.parametrize("keep", ["cache and journal", "journal", "cache", "neither"])
def test_every_later_try_gives_the_same_bytes(
    raw: Path, encoders: Path, first: First, tmp_path: Path, keep: str
) -> None:
    own = own_copy(first, tmp_path)
    if "cache" not in keep:
        shutil.rmtree(own / "cache")
    if "journal" not in keep:
        (own / "rejects.jsonl").unlink()
    maker = UnitMaker(job(raw, encoders, own))
    assert made(maker) == first[1]
    assert len(journal(own)) == len(journal(first[0]))
    if "cache" in keep:
        # Only the broken one is tried again, and that only where the journal does not say so.
        assert maker._cache.counts["misses"] == (0 if "journal" in keep else len(journal(own)))


def test_a_damaged_cache_file_is_set_aside_and_its_latents_made_again(
    raw: Path, encoders: Path, first: First, tmp_path: Path
) -> None:
    own = own_copy(first, tmp_path)
    (file,) = (own / "cache").rglob("*.arrow")
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    maker = UnitMaker(job(raw, encoders, own))
    assert made(maker) == first[1]
    assert maker._cache.counts["damaged"] == 1 and list((own / "cache").rglob("*.damaged"))


def test_the_journal_decides_and_the_other_samples_keep_their_bits(
    raw: Path, encoders: Path, first: First, tmp_path: Path
) -> None:
    own = own_copy(first, tmp_path)
    maker = UnitMaker(job(raw, encoders, own))
    unit = UnitId("train", 0, 0)
    before = {sample.key: sample for sample in unpack(maker(unit)[0])[1]}
    gone = next(iter(before))
    maker._rejects.add(maker.offer.plan, unit, [(gone, "by hand")])
    after = {sample.key: sample for sample in unpack(maker(unit)[0])[1]}
    assert after.keys() == before.keys() - {gone}
    for key, sample in after.items():
        assert np.array_equal(sample.text, before[key].text)
        assert np.array_equal(sample.latent.mean, before[key].latent.mean)


def test_a_picture_that_changed_since_curation_is_left_out(raw: Path, encoders: Path, tmp_path: Path) -> None:
    shutil.copytree(raw, tmp_path / "changed")
    tar = tmp_path / "changed" / "raw" / "photos.tar"
    content = tar.read_bytes()
    at = content.index(jpeg(5)) + 300
    tar.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    maker = UnitMaker(job(tmp_path / "changed", encoders, tmp_path))
    made(maker)
    reasons = {line["key"]: line["reason"] for line in journal(tmp_path)}
    assert reasons.get("photos/005") == "picture: its bytes are not those that were curated"


def test_a_source_that_is_away_is_no_fault_of_the_samples(raw: Path, encoders: Path, tmp_path: Path) -> None:
    shutil.copytree(raw, tmp_path / "away")
    maker = UnitMaker(job(tmp_path / "away", encoders, tmp_path))
    (tmp_path / "away" / "raw" / "photos.tar").unlink()
    with pytest.raises(SourceError):
        maker(UnitId("train", 0, 0))
    assert journal(tmp_path) == []


def with_encoder(job: EncodeJob, **over: object) -> EncodeJob:
    return job.model_copy(update={"encoder": job.encoder.model_copy(update=over)})


@pytest.mark.parametrize("threads", [1, 4])
def test_what_is_begun_ahead_and_when_it_is_done_changes_no_byte(
    raw: Path, encoders: Path, first: First, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    decode, draw = produce.picture, random.Random(threads)

    def slowly(*arguments: object) -> object:
        time.sleep(draw.random() / 100)
        return decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(produce, "picture", slowly)
    maker = UnitMaker(with_encoder(job(raw, encoders, tmp_path), decode_threads=threads))
    found, order = {}, units()
    for number, unit in enumerate(order):
        # The next ones, some that never come, and some that are let go again.
        maker.expect([*draw.sample(order, 2), *order[number + 1 : number + 3]])
        maker.expect(order[number + 1 : number + 1 + draw.randrange(3)])
        batch, rejected = maker(unit)
        found[unit] = (batch.serialize().to_pybytes(), rejected)
    maker.close()
    assert found == first[1]
    assert len(journal(tmp_path)) == len(journal(first[0]))


def test_the_next_units_pictures_are_decoded_while_the_device_encodes(
    raw: Path, encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = UnitMaker(job(raw, encoders, tmp_path))
    one, other = UnitId("train", 0, 0), UnitId("train", 0, 1)
    encode, decoded = maker._encoder.encode_unit, threading.Event()

    def meanwhile(*arguments: object) -> object:
        until(lambda: maker.numbers().get("decode_samples", 0) >= 10)
        decoded.set()
        return encode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(maker._encoder, "encode_unit", meanwhile)
    maker.expect([other])
    maker(one)
    assert decoded.is_set()
    maker(other)
    numbers = maker.numbers()
    assert numbers["decode_samples"] == numbers["read_samples"] == 10
    assert numbers["vae_samples"] + numbers.get("left_out_picture", 0) == 10
    assert numbers["text_samples"] == 10 and numbers["cached_samples"] == 0
    assert min(numbers[f"{stage}_seconds"] for stage in ("read", "decode", "vae", "text", "wait")) > 0
    maker.close()


def test_units_no_longer_expected_are_let_go(
    raw: Path, encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, go, asked = produce.picture, threading.Event(), []

    def held(*arguments: object) -> object:
        asked.append(arguments)
        assert go.wait(60)
        return decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(produce, "picture", held)
    maker = UnitMaker(with_encoder(job(raw, encoders, tmp_path), decode_threads=1))
    maker.expect([UnitId("train", 0, 0), UnitId("train", 0, 1)])
    until(lambda: len(asked) == 1)
    maker.expect([])
    go.set()
    maker.expect([UnitId("train", 1, 0)])
    maker(UnitId("train", 1, 0))
    # The one under way when all were let go, and those of the unit that was made.
    assert len(asked) <= 1 + 5
    maker.close()


def test_a_source_that_was_away_ahead_fails_that_unit_once(
    raw: Path, encoders: Path, first: First, tmp_path: Path
) -> None:
    shutil.copytree(raw, tmp_path / "away")
    tar = tmp_path / "away" / "raw" / "photos.tar"
    maker = UnitMaker(job(tmp_path / "away", encoders, tmp_path))
    tar.rename(tmp_path / "elsewhere")
    unit = UnitId("train", 0, 0)
    maker.expect([unit])
    with pytest.raises(SourceError):
        maker(unit)
    (tmp_path / "elsewhere").rename(tar)
    assert maker(unit)[0].serialize().to_pybytes() == first[1][unit][0]
    maker.close()


def test_cached_latents_need_no_picture_also_after_another_text_setting(
    raw: Path, encoders: Path, first: First, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_copy(first, tmp_path)
    (own / "rejects.jsonl").rename(own / "other.jsonl")
    maker = UnitMaker(with_encoder(job(raw, encoders, own), text_batch=3))
    decoded: list[bytes] = []
    monkeypatch.setattr(produce, "picture", lambda image, bucket: decoded.append(image) or "picture: not needed")
    made(maker)
    assert set(decoded) == {jpeg(3)}


def test_a_device_that_fails_ends_the_maker_and_no_sample_is_blamed(
    raw: Path, encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = UnitMaker(job(raw, encoders, tmp_path))

    def lost(*_: object) -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(maker._encoder._vae, "encode", lost)
    with pytest.raises(MakerBrokenError, match="the device failed: an illegal"):
        maker(UnitId("train", 0, 0))
    assert journal(tmp_path) == []
    maker.close()


def test_a_unit_made_sample_by_sample_is_the_same_unit(raw: Path, encoders: Path, first: First, tmp_path: Path) -> None:
    maker = UnitMaker(job(raw, encoders, tmp_path))
    for unit in units():
        batch, rejected = maker.narrow(unit)
        assert (batch.serialize().to_pybytes(), rejected) == first[1][unit]
    maker.close()
