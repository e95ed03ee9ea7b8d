"""Latents on disk: what was put comes back, whoever reads; what is damaged or gone is missing and never wrong."""

import multiprocessing
import os
import random
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from producer.api.bucket import Bucket
from producer.api.unit import Latent
from producer.cache import CacheConfig, LatentCache, LatentKey, fill

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
    here = next((tmp_path / "e" / str(WIDE)).iterdir())
    for other in (next((tmp_path / "e" / str(TALL)).iterdir()), next((tmp_path / "f" / str(WIDE)).iterdir())):
        here.write_bytes(other.read_bytes())
        fresh = LatentCache(CacheConfig(path=tmp_path))
        assert not fresh.get([key("a"), key("b")])
        assert fresh.counts["damaged"] == 1


def test_a_file_that_is_gone_costs_only_its_latents(tmp_path: Path) -> None:
    latents = filled(tmp_path)
    cache = LatentCache(CacheConfig(path=tmp_path))
    assert len(cache.get([key("s0")])) == 1
    cache._mapped.clear()
    files(tmp_path)[0].unlink()
    assert not cache.get(latents)
    assert cache.counts["damaged"] == 0


def test_a_full_disk_costs_only_the_saving(tmp_path: Path) -> None:
    cache = LatentCache(CacheConfig(path=tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        cache.put({key("a"): latent(1)})
        cache.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert cache.counts["unwritten"] == 1
    assert not files(tmp_path) and not files(tmp_path, ".part")
    assert not cache.get([key("a")])
    cache.put({key("a"): latent(1)})
    cache.flush()
    assert cache.get([key("a")])


def test_no_space_left_and_a_folder_that_cannot_be_made_cost_only_the_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    cache = LatentCache(CacheConfig(path=tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        cache.put({key("a"): latent(1)})
        cache.flush()
    assert cache.counts["unwritten"] == 1 and not files(tmp_path, ".part")
    (tmp_path / "file").write_text("")
    blocked = LatentCache(CacheConfig(path=tmp_path / "file"))
    blocked.put({key("a"): latent(1)})
    blocked.flush()
    assert blocked.counts["unwritten"] == 1


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    cache = LatentCache(CacheConfig(path=tmp_path, limit_bytes=10_000))
    for n in range(12):
        cache.put({key(f"s{n}"): latent(n)})
        cache.flush()
        newest = max(files(tmp_path), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, (1000 + n, 1000 + n))
    assert 0 < fill(tmp_path) <= 10_000
    kept = [name.sample for name in cache.get(key(f"s{n}") for n in range(12))]
    assert kept == [f"s{n}" for n in range(12 - len(kept), 12)]
    assert cache.counts["evicted"] == 12 - len(kept) > 0


def test_what_a_dead_writer_left_aside_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "e" / str(WIDE)
    folder.mkdir(parents=True)
    old, young = folder / "dead-000001.part", folder / "live-000001.part"
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 10_000,) * 2)
    LatentCache(CacheConfig(path=tmp_path))
    assert not old.exists() and young.exists()


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
