"""What a flipped bit does to files of the cache and to units on the wire, tried in processes of their own."""

import logging
import multiprocessing
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from producer.api.bucket import Bucket
from producer.api.unit import Encoded, Header, Latent, UnitError, UnitId, header_of, pack, unpack
from producer.cache import CacheConfig, LatentCache, LatentKey

BUCKET, OTHER = Bucket(32, 64), Bucket(64, 32)
WAYS = ("flip", "flip", "flip", "flip", "flip", "flip", "cut", "emptied", "swapped", "of another bucket")


def apart(trial: Callable[[int, int], dict[str, int]], count: int, slice_: int = 250) -> Counter[str]:
    """What `trial` says of the seeds up to `count`, a slice of them a process; a process that dies is an error."""
    context = multiprocessing.get_context("spawn")
    seen: Counter[str] = Counter()
    for start in range(0, count, slice_):
        queue = context.SimpleQueue()
        process = context.Process(target=_run, args=(trial, start, min(start + slice_, count), queue))
        process.start()
        process.join(240)
        assert process.exitcode == 0, f"seeds {start} to {start + slice_}: the reader ended with {process.exitcode}"
        seen.update(queue.get())
    return seen


def _run(
    trial: Callable[[int, int], dict[str, int]],
    start: int,
    stop: int,
    queue: "multiprocessing.SimpleQueue[dict[str, int]]",
) -> None:
    logging.disable()
    queue.put(trial(start, stop))


def flipped(raw: bytes, spans: Sequence[tuple[int, int]], rng: random.Random) -> bytes:
    """`raw` with one bit turned, each of its `spans` as likely as another."""
    damaged = bytearray(raw)
    damaged[rng.randrange(*rng.choice(spans))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


# Files of the cache


def latent(number: int, bucket: Bucket) -> Latent:
    planes = np.random.default_rng(number).standard_normal((2, 4, bucket.height // 8, bucket.width // 8))
    return Latent(bucket.height, bucket.width, *planes.astype(np.float16))


def damaged_files(start: int, stop: int) -> dict[str, int]:
    """What became of two buckets' files, one damaged: none may give another latent, and all heal when put again."""
    seen: Counter[str] = Counter()
    root = Path(tempfile.mkdtemp())
    buckets = enumerate((BUCKET, OTHER))
    keys = {LatentKey(f"s{n}", "c", bucket, "e"): 8 * at + n for at, bucket in buckets for n in range(8)}
    cache = LatentCache(CacheConfig(path=root / "whole", spare_bytes=0))
    cache.put({key: latent(n, key.bucket) for key, n in keys.items()})
    cache.flush()
    for seed in range(start, stop):
        rng = random.Random(seed)
        shutil.copytree(root / "whole", root / "cache")
        file, other = (next((root / "cache" / "e" / str(bucket)).glob("*.arrow")) for bucket in (BUCKET, OTHER))
        way, raw = WAYS[seed % len(WAYS)], file.read_bytes()
        values = tuple(int(part, 16) for part in file.name.split("-")[2:4])
        if way == "flip":
            file.write_bytes(flipped(raw, [(0, values[0]), values, (values[1], len(raw))], rng))
        elif way == "cut":
            file.write_bytes(raw[: rng.randrange(len(raw))])
        elif way == "emptied":
            file.write_bytes(b"")
        elif way == "swapped":
            file.write_bytes(other.read_bytes())
            other.write_bytes(raw)
        else:
            other.rename(file.with_name(other.name))
            file.unlink()
        reader = LatentCache(CacheConfig(path=root / "cache", spare_bytes=0))
        seen[_judged(reader, keys)] += 1
        reader.put({key: latent(n, key.bucket) for key, n in keys.items()})
        reader.flush()
        healed = LatentCache(CacheConfig(path=root / "cache", spare_bytes=0))
        seen["not healed"] += _judged(healed, keys) != "harmless"
        shutil.rmtree(root / "cache")
    shutil.rmtree(root)
    return seen


def _judged(reader: LatentCache, keys: dict[LatentKey, int]) -> str:
    found = reader.get(keys)
    for key, value in found.items():
        true = latent(keys[key], key.bucket)
        if value.mean.tobytes() != true.mean.tobytes() or value.logvar.tobytes() != true.logvar.tobytes():
            return "wrong"
    if len(found) == len(keys):
        return "harmless" if not reader.counts["damaged"] else "wrong"
    return "caught" if reader.counts["damaged"] else "lost without a word"


# Units on the wire


def sample(key: str, tokens: int, references: int) -> Encoded:
    text = np.random.default_rng(tokens).integers(0, 1 << 16, (tokens, 8), np.uint16)
    pictures = tuple(latent(9 + n, OTHER) for n in range(references))
    return Encoded(key, "photos", "shard.tar", "t2i", "raw", "ein Hündchen", latent(tokens, BUCKET), text, pictures)


def wire(unit: UnitId) -> tuple[bytes, list[Encoded]]:
    """A unit as a Flight stream carries it: the message of its schema, then that of its batch."""
    samples = [sample(f"{unit}/{n}", 3 + 2 * n, n) for n in range(3)]
    batch = pack(Header("plan", unit, "encoder"), samples)
    return b"".join((batch.schema.serialize().to_pybytes(), batch.serialize().to_pybytes())), samples


def damaged_units(start: int, stop: int) -> dict[str, int]:
    """What became of damaged units: none may be taken for whole."""
    seen: Counter[str] = Counter()
    unit, other = UnitId("train", 3, 1), UnitId("train", 3, 2)
    raw, samples = wire(unit)
    schema = len(pack(Header("plan", unit, "encoder"), samples).schema.serialize())
    body = raw.index(samples[0].latent.mean.tobytes())
    spans = [(0, schema), (schema, body), (body, len(raw))]
    for seed in range(start, stop):
        rng = random.Random(seed)
        way = WAYS[seed % len(WAYS)]
        if way == "flip":
            damaged = flipped(raw, spans, rng)
        elif way == "cut":
            damaged = raw[: rng.randrange(len(raw))]
        else:
            damaged = b"" if way == "emptied" else wire(other)[0]
        seen[_taken(damaged, unit, samples)] += 1
    return seen


def _taken(raw: bytes, unit: UnitId, samples: list[Encoded]) -> str:
    options = pa.ipc.IpcReadOptions(ensure_alignment=pa.ipc.Alignment.At64Byte)
    try:
        with pa.ipc.open_stream(raw, options=options) as reader:
            batch = reader.read_next_batch()
        if header_of(batch).unit != unit:
            return "caught"
        found = unpack(batch)[1]
    except (UnitError, pa.ArrowException, OSError, StopIteration, ValueError):
        return "caught"
    return "harmless" if [_bits(one) for one in found] == [_bits(one) for one in samples] else "wrong"


def _bits(one: Encoded) -> list[object]:
    latents = [(x.height, x.width, x.mean.tobytes(), x.logvar.tobytes()) for x in (one.latent, *one.references)]
    return [one.key, one.source, one.shard, one.task, one.split, one.caption, one.text.tobytes(), latents]
