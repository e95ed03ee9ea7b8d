"""Latents on disk: what was put comes back, whoever reads; what is damaged or gone is missing and never wrong."""

import multiprocessing
import os
import random
import resource
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from producer import cache as cache_module
from producer import cache_folder as folder_module
from producer import cache_space as space_module
from producer.api.bucket import Bucket
from producer.api.unit import Latent
from producer.cache import CacheConfig, LatentCache, LatentKey, fill
from producer.cache_file import locked

WIDE, TALL = Bucket(32, 64), Bucket(64, 32)


def key(name: str, bucket: Bucket = WIDE, *, content: str = "c", encoder: str = "e") -> LatentKey:
    return LatentKey(name, content, bucket, encoder)


def latent(number: int, bucket: Bucket = WIDE) -> Latent:
    rng = np.random.default_rng(number)
    mean, logvar = (rng.standard_normal((4, bucket.height // 8, bucket.width // 8)).astype(np.float16) for _ in "ab")
    return Latent(bucket.height, bucket.width, mean, logvar)


def same(a: Latent, b: Latent) -> bool:
    bits = [(x.mean.tobytes(), x.logvar.tobytes(), x.height, x.width, x.mean.shape, x.mean.dtype) for x in (a, b)]
    return bits[0] == bits[1]


def filled(path: Path, count: int = 8, limit: int = 10**9) -> dict[LatentKey, Latent]:
    latents = {key(f"s{n}"): latent(n) for n in range(count)}
    cache = LatentCache(CacheConfig(path=path, limit_bytes=limit))
    cache.put(latents)
    cache.flush()
    return latents


def files(path: Path, ending: str = ".arrow") -> list[Path]:
    return sorted(path.rglob(f"*{ending}"))


def test_what_was_put_is_found_before_and_after_it_is_on_disk(tmp_path: Path) -> None:
    cache = LatentCache(CacheConfig(path=tmp_path))
    put = {key("a"): latent(1), key("b", TALL): latent(2, TALL)}
    cache.put(put)
    for _ in range(2):
        found = cache.get([*put, key("c")])
        assert found.keys() == put.keys()
        assert all(same(found[name], put[name]) for name in put)
        cache.flush()
    assert len(files(tmp_path)) == 2  # a bucket a file
    again = LatentCache(CacheConfig(path=tmp_path)).get(put)
    assert all(same(again[name], put[name]) for name in put)


def test_another_content_bucket_or_encoder_is_another_sample(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    cache = LatentCache(CacheConfig(path=tmp_path))
    assert cache.get([key("s0")])
    assert not cache.get([key("s0", TALL), key("s0", content="d"), key("s0", encoder="f"), key("s1")])


def test_a_reader_sees_what_another_writer_added_since(tmp_path: Path) -> None:
    reader, writer = (LatentCache(CacheConfig(path=tmp_path)) for _ in range(2))
    for n in range(20):
        assert not reader.get([key(f"n{n}")])
        writer.put({key(f"n{n}"): latent(n)})
        writer.flush()
        assert same(reader.get([key(f"n{n}")])[key(f"n{n}")], latent(n))


def test_small_puts_are_gathered_into_one_file(tmp_path: Path) -> None:
    cache = LatentCache(CacheConfig(path=tmp_path))
    for n in range(10):
        cache.put({key(f"s{n}"): latent(n)})
    assert not files(tmp_path)
    cache.flush()
    assert len(files(tmp_path)) == 1


def test_no_damage_to_a_file_is_ever_taken_for_a_latent(tmp_path: Path) -> None:
    rng = random.Random(5)
    (file,) = [filled(tmp_path), files(tmp_path)][1]
    whole = file.read_bytes()
    latents = {key(f"s{n}"): latent(n) for n in range(8)}
    outcomes = {"set aside": 0, "untouched": 0}
    for round_ in range(200):
        raw = bytearray(whole)
        if round_ % 4 == 3:
            raw = raw[: rng.randrange(len(raw))]
        else:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        for other in file.parent.iterdir():
            other.unlink()
        file.write_bytes(raw)
        cache = LatentCache(CacheConfig(path=tmp_path))
        found = cache.get(latents)
        assert all(same(found[name], latents[name]) for name in found)
        if len(found) < len(latents):
            assert cache.counts["damaged"] == 1 and not file.exists()
            assert files(tmp_path, ".damaged")
        outcomes["set aside" if len(found) < len(latents) else "untouched"] += 1
    assert outcomes["set aside"] > 180  # the rest hit padding


def test_a_damaged_file_is_set_aside_and_what_it_held_can_be_put_again(tmp_path: Path) -> None:
    latents = filled(tmp_path)
    (file,) = files(tmp_path)
    file.write_bytes(file.read_bytes()[:1000])
    cache = LatentCache(CacheConfig(path=tmp_path))
    assert not cache.get(latents)
    cache.put(latents)
    cache.flush()
    assert len(cache.get(latents)) == 8
    assert len(files(tmp_path, ".damaged")) == 1


def test_a_file_of_another_bucket_or_encoder_put_in_its_place_is_refused(tmp_path: Path) -> None:
    cache = LatentCache(CacheConfig(path=tmp_path))
    cache.put({key("a", TALL): latent(1, TALL), key("a", encoder="f"): latent(2)})
    cache.put({key("b"): latent(3)})
    cache.flush()
    here = next((tmp_path / "e" / str(WIDE)).glob("*.arrow"))
    for folder in (tmp_path / "e" / str(TALL), tmp_path / "f" / str(WIDE)):
        (other,) = folder.glob("*.arrow")
        for name in (here.name, other.name):
            here.with_name(name).write_bytes(other.read_bytes())
            fresh = LatentCache(CacheConfig(path=tmp_path))
            assert not fresh.get([key("a"), key("b")])
            assert fresh.counts["damaged"] == 1


def test_a_file_that_is_gone_costs_only_its_latents(tmp_path: Path) -> None:
    latents = filled(tmp_path)
    cache = LatentCache(CacheConfig(path=tmp_path))
    assert len(cache.get([key("s0")])) == 1
    files(tmp_path)[0].unlink()
    assert not cache.get(latents)
    assert cache.counts["damaged"] == 0


def test_a_write_that_fails_costs_only_the_keeping_until_it_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "_PAUSE_S", (1e-9, 1e-9))
    monkeypatch.setattr(cache_module, "_GATHER_BYTES", 3 * latent(0).mean.nbytes)
    monkeypatch.setattr(cache_module, "_GATHER_S", 0.0)
    cache = LatentCache(CacheConfig(path=tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        for n in range(4):
            cache.put({key(f"s{n}"): latent(n)})
            assert cache.full == "File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert cache.counts["unwritten"] > 0 == cache.counts["written"]
    assert not files(tmp_path) and not files(tmp_path, ".part")
    cache.put({key("a"): latent(1)})
    assert cache.full == "" and cache.counts["written"] + cache.counts["unwritten"] == 5
    assert same(LatentCache(CacheConfig(path=tmp_path)).get([key("a")])[key("a")], latent(1))
    said = [record.message for record in caplog.records]
    assert len(said) == 2 and "not kept until there is room" in said[0] and "there is room again" in said[1]


def test_after_a_write_that_failed_the_next_one_waits(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = LatentCache(CacheConfig(path=tmp_path / "file"))
    cache.put({key("a"): latent(1)})
    cache.flush()
    assert cache.full
    (tmp_path / "file").unlink()
    cache._folders[next(iter(cache._folders))].since = -1e9
    cache.put({key("b"): latent(2)})
    assert not files(tmp_path), "it did not wait"
    cache._again = 0.0
    cache.put({key("c"): latent(3)})
    assert len(LatentCache(CacheConfig(path=tmp_path / "file")).get([key("a"), key("b"), key("c")])) == 3


def test_space_that_others_need_is_left_to_them(tmp_path: Path) -> None:
    cache = LatentCache(CacheConfig(path=tmp_path, spare_bytes=10**18))
    cache.put({key("a"): latent(1)})
    cache.flush()
    assert "cache.spare_bytes" in cache.full and not files(tmp_path)


def kept(cache: LatentCache, encoders: str, count: int) -> list[str]:
    """The encoder and sample of those found, in order."""
    found = cache.get(key(f"s{n}", encoder=encoder) for encoder in encoders for n in range(count))
    return [f"{name.encoder}{name.sample}" for name in found]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """All files are looked at before every write."""
    monkeypatch.setattr(space_module, "_SCAN_S", 0.0)
    monkeypatch.setattr(space_module, "_SCAN_SHARE", 0)
    monkeypatch.setattr(folder_module, "_MERGE", 1000)


def aged(path: Path, seconds: float) -> None:
    """Make it as if the files of `path` had last been used `seconds` ago, the first of them longest ago."""
    for n, file in enumerate(sorted(files(path), key=lambda file: file.stat().st_mtime_ns)):
        os.utime(file, (time.time() - seconds + n,) * 2)


def test_what_is_in_use_is_not_replaced_by_what_is_new(tmp_path: Path, unhurried: None) -> None:
    cache = LatentCache(CacheConfig(path=tmp_path, limit_bytes=8_000))
    for n in range(12):
        cache.put({key(f"s{n}"): latent(n)})
        cache.flush()
        for folder in cache._folders.values():
            folder.drop()
    assert 4_000 < fill(tmp_path) <= 8_000
    first = kept(LatentCache(CacheConfig(path=tmp_path)), "e", 12)
    assert first == [f"es{n}" for n in range(len(first))] and cache.counts["evicted"] == 0
    assert "cache.limit_bytes 8000: all of it is in use" in cache.full


def test_other_encoders_then_idle_buckets_then_idle_files_make_room(tmp_path: Path, unhurried: None) -> None:
    config = CacheConfig(path=tmp_path, limit_bytes=10**9)
    writer = LatentCache(config)
    for encoder in "fe":
        for n in range(3):
            writer.put({key(f"s{n}", encoder=encoder): latent(n)})
            writer.flush()
    aged(tmp_path, 5_000)
    full = CacheConfig(path=tmp_path, limit_bytes=fill(tmp_path))
    seen = []
    for n in range(3, 10):
        cache = LatentCache(full)
        cache.put({key(f"s{n}", TALL, encoder="e"): latent(n, TALL)})
        cache.flush()
        seen.append(kept(LatentCache(config), "fe", 3))
        aged(tmp_path / "e" / str(WIDE), 5_000)
        aged(tmp_path / "f", 5_000)
    # A new file is counted somewhat larger than it is.
    assert seen[0] == ["fs2", "es0", "es1", "es2"] and [] in seen
    assert all(
        len(later) <= len(sooner) and later == sooner[len(sooner) - len(later) :] for sooner, later in pairwise(seen)
    )


def test_a_file_that_nobody_reads_for_long_makes_room_in_a_folder_in_use(tmp_path: Path, unhurried: None) -> None:
    writer = LatentCache(CacheConfig(path=tmp_path))
    for n in range(3):
        writer.put({key(f"s{n}"): latent(n)})
        writer.flush()
    aged(tmp_path, 100_000)
    reader = LatentCache(CacheConfig(path=tmp_path, limit_bytes=fill(tmp_path) + 1000))
    assert kept(reader, "e", 1) == ["es0"]  # which is thereby used
    reader.put({key("s3"): latent(3)})
    reader.flush()
    assert kept(LatentCache(CacheConfig(path=tmp_path)), "e", 4)[:1] == ["es0"]
    assert "es1" not in kept(LatentCache(CacheConfig(path=tmp_path)), "e", 4)
    assert "es3" in kept(LatentCache(CacheConfig(path=tmp_path)), "e", 4)


def test_a_limit_that_was_lowered_is_kept_to(tmp_path: Path, unhurried: None) -> None:
    writer = LatentCache(CacheConfig(path=tmp_path))
    for n in range(6):
        writer.put({key(f"s{n}"): latent(n)})
        writer.flush()
    limit = fill(tmp_path) // 2
    cache = LatentCache(CacheConfig(path=tmp_path, limit_bytes=limit))
    cache.put({key("new"): latent(9)})
    cache.flush()
    assert 0 < fill(tmp_path) <= limit


def test_what_a_dead_writer_left_aside_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "e" / str(WIDE)
    folder.mkdir(parents=True)
    dead, living = folder / "dead-000001.part", folder / "live-000001.part"
    dead.write_bytes(b"half")
    with locked(living) as mine:
        assert mine
        LatentCache(CacheConfig(path=tmp_path))
        assert not dead.exists() and living.exists()
    LatentCache(CacheConfig(path=tmp_path))
    assert not living.exists()


def test_damaged_files_do_not_pile_up(tmp_path: Path, unhurried: None) -> None:
    folder = tmp_path / "e" / str(WIDE)
    folder.mkdir(parents=True)
    for n in range(40):
        (folder / f"{n}.arrow").write_bytes(b"no cache file")
    cache = LatentCache(CacheConfig(path=tmp_path))
    assert not cache.get([key("a")]) and cache.counts["damaged"] == 40
    cache.put({key("a"): latent(1)})
    cache.flush()
    assert len(files(tmp_path, ".damaged")) == 16 and len(files(tmp_path)) == 1


def test_one_damaged_record_costs_only_itself(tmp_path: Path) -> None:
    latents = filled(tmp_path)
    (file,) = files(tmp_path)
    raw = bytearray(file.read_bytes())
    raw[raw.index(latent(3).mean.tobytes()) + 5] ^= 4
    file.write_bytes(raw)
    cache = LatentCache(CacheConfig(path=tmp_path))
    assert len(cache.get(latents)) == 7 == len(LatentCache(CacheConfig(path=tmp_path)).get(latents))
    assert len(files(tmp_path)) == len(files(tmp_path, ".damaged")) == 1
    cache.put({key("s3"): latent(3)})
    cache.flush()
    assert len(LatentCache(CacheConfig(path=tmp_path)).get(latents)) == 8


def test_a_file_cut_short_while_it_is_mapped_is_damaged_and_not_the_end(tmp_path: Path) -> None:
    latents = filled(tmp_path)
    cache = LatentCache(CacheConfig(path=tmp_path))
    assert len(cache.get(latents)) == 8
    (file,) = files(tmp_path)
    os.truncate(file, 100)
    assert not cache.get(latents) and cache.counts["damaged"] == 1
    assert not files(tmp_path)


def test_many_small_files_become_few_and_lose_nothing(tmp_path: Path) -> None:
    writer, reader = (LatentCache(CacheConfig(path=tmp_path)) for _ in range(2))
    latents = {key(f"s{n}"): latent(n) for n in range(100)}
    most = 0
    for name, value in latents.items():
        assert reader.get([name]) == {}
        writer.put({name: value})
        writer.flush()
        most = max(most, len(files(tmp_path)))
    assert most < 25 and writer.counts["merged"] > 100
    for cache in (writer, reader, LatentCache(CacheConfig(path=tmp_path))):
        found = cache.get(latents)
        assert len(found) == 100 and all(same(found[name], latents[name]) for name in latents)
        assert cache.counts["damaged"] == 0


def test_a_merge_that_was_cut_off_leaves_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = LatentCache(CacheConfig(path=tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(folder_module.Folder, "_remove", lambda self, name: self._forget(name))
        for n in range(8):
            cache.put({key(f"s{n}"): latent(n)})
            cache.flush()
    assert len(files(tmp_path)) == 9
    again = LatentCache(CacheConfig(path=tmp_path))
    assert len(again.get(key(f"s{n}") for n in range(8))) == 8
    assert len(files(tmp_path)) == 1


def test_two_writers_keep_a_latent_once(tmp_path: Path) -> None:
    caches = [LatentCache(CacheConfig(path=tmp_path)) for _ in range(2)]
    for cache in caches:
        cache.put({key(f"s{n}"): latent(n) for n in range(4)})
    for cache in caches:
        cache.flush()
    assert [cache.counts["written"] for cache in caches] == [4, 0]


def test_a_writer_frozen_in_its_turn_holds_others_up_only_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_TURN_S", 0.1)
    folder = tmp_path / "e" / str(WIDE)
    folder.mkdir(parents=True)
    with locked(folder / ".lock"):
        filled(tmp_path)
    assert len(files(tmp_path)) == 1


def test_pictures_of_edit_samples_come_back(tmp_path: Path) -> None:
    cache = LatentCache(CacheConfig(path=tmp_path))
    picture = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    cache.put_pictures({key("a"): picture})
    cache.flush()
    fresh = LatentCache(CacheConfig(path=tmp_path))
    assert (fresh.pictures([key("a"), key("b")])[key("a")] == picture).all() and fresh.counts["hits"] == 1


def _churn(path: str, seed: int, wrong: "multiprocessing.SimpleQueue[int]") -> None:
    rng = random.Random(seed)
    cache = LatentCache(CacheConfig(path=Path(path), limit_bytes=60_000))
    bad = 0
    for _ in range(60):
        n = rng.randrange(30)
        found = cache.get([key(f"s{n}")])
        if found and not same(found[key(f"s{n}")], latent(n)):
            bad += 1
        if not found:
            cache.put({key(f"s{n}"): latent(n)})
            cache.flush()
    wrong.put(bad)


def test_processes_read_write_and_evict_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    wrong: multiprocessing.SimpleQueue[int] = context.SimpleQueue()
    workers = [context.Process(target=_churn, args=(str(tmp_path), seed, wrong)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [wrong.get() for _ in workers] == [0, 0, 0]
    assert not files(tmp_path, ".damaged") and not files(tmp_path, ".part")
    assert fill(tmp_path) <= 60_000 + 3 * 5_000
