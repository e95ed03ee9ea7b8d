"""The whole encode worker against its parts run alone: decoding, VAE, text. Run with `make bench-data`.

A real worker leases from a real coordinator over Flight, reads photographs out of a tar, makes its units and registers
them; it has two threads that compute, one that decodes and one that encodes, and so may be as fast as its slowest part.
"""

import hashlib
import io
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
import webdataset
from PIL import Image
from skimage import data

from launch.make_encoders import make
from launch.words import english
from producer.api.protocol import Hello
from producer.api.unit import UnitId
from producer.cache import CacheConfig
from producer.coordinator import Limits
from producer.coordinator_server import CoordinatorServer
from producer.encoder_config import EncoderConfig
from producer.index import write_generation
from producer.produce import EncodeJob, UnitMaker
from producer.recipe import RecipeConfig
from producer.source.reader import SourceConfig, open_source
from producer.worker import Worker, WorkerSetup
from tests.bench.report import record
from tests.unit.producer.rows import table

TURNS = 5
UNITS = 12  # in a turn, after WARM others
WARM = 2
SAMPLES = 16  # a unit
PHOTOS = (UNITS + WARM + 4) * SAMPLES
TARGET = 0.9
TARGET_CPU = 0.9
LONGEST_S = 600.0  # for a turn


@dataclass(frozen=True)
class Rates:
    """Seconds of the clock and of CPU for an image."""

    wall: float
    cpu: float


def captions() -> list[str]:
    """Of log-normal length, in words, as captions are: a median near 50, a few of 200."""
    draw, words = random.Random(0), " ".join(english()).split()
    lengths = [max(1, min(200, round(draw.lognormvariate(3.9, 0.6)))) for _ in range(PHOTOS)]
    return [" ".join(draw.choices(words, k=length)) for length in lengths]


def make_source(folder: Path, side: int) -> None:
    """`folder`/raw, a tar of photographs of `side` pixels a side, and `folder`/index."""
    photographs = []
    for picture in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket()):
        short = min(picture.shape[:2])
        out = io.BytesIO()
        Image.fromarray(picture[:short, :short]).resize((side, side)).save(out, "JPEG", quality=92)
        photographs.append(out.getvalue())
    (folder / "raw").mkdir()
    texts = captions()
    with webdataset.TarWriter(str(folder / "raw" / "photos.tar")) as writer:
        for number, text in enumerate(texts):
            writer.write({"__key__": f"{number:04d}", "jpg": photographs[number % 4], "txt": text})
    reader = open_source(SourceConfig(path=folder / "raw"))
    samples = [sample for shard in reader.shards() for sample in reader.samples(shard)]
    columns: dict[str, list[object]] = {
        name: [getattr(sample, name) for sample in samples] for name in ("key", "shard", "member", "offset", "size")
    }
    hashes = [hashlib.sha256(photograph).hexdigest() for photograph in photographs]
    columns |= {
        "sha256": [hashes[number % 4] for number in range(PHOTOS)],
        "width": [side] * PHOTOS,
        "height": [side] * PHOTOS,
        "captions": [[{"split": "raw", "text": text, "tokens": len(text) // 4, "kept": True}] for text in texts],
        "cluster": list(columns["key"]),
    }
    rows = table(PHOTOS)
    for name, values in columns.items():
        field = rows.schema.field(name)
        rows = rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))
    write_generation(folder / "index", rows, tokenizer="t", operators={"aesthetic": {}})


def job(folder: Path, own: Path, dtype: str) -> EncodeJob:
    return EncodeJob(
        index=folder / "index",
        rejects=own / "rejects.jsonl",
        seed=0,
        cost=(100, 1),
        source=SourceConfig(path=folder / "raw"),
        recipe=RecipeConfig(resolutions=(256,), aspects=("1:1",), units=1, samples=SAMPLES),
        encoder=EncoderConfig(root=folder / "encoders", dtype=dtype, decode_threads=1),  # type: ignore[arg-type]
        cache=CacheConfig(path=own / "cache"),
    )


@contextmanager
def running(maker: UnitMaker) -> Iterator[Worker]:
    """A worker and its coordinator, which a trainer wants all units of."""
    limits = Limits(horizon_bytes=1 << 40, heartbeat_s=1.0, lease_s=60.0)
    coordinator = CoordinatorServer(maker.offer, limits, host="127.0.0.1", port=0, access="a token as long as need be")
    coordinator._rules.hello(Hello("t", 1, 0), time.monotonic())
    worker = Worker(WorkerSetup("w0", lambda: coordinator.address, "a token as long as need be"), maker)
    try:
        yield worker
    finally:
        worker.stop()
        coordinator.stop()


def whole(maker: UnitMaker) -> Rates:
    """The worker's, from one unit's end to another's."""

    def until(units: int) -> tuple[float, float, float]:
        deadline = time.monotonic() + LONGEST_S
        while worker.numbers()["units"] < units:
            assert time.monotonic() < deadline, "too slow"
            time.sleep(0.02)
        return time.perf_counter(), time.process_time(), worker.numbers()["samples"]

    with running(maker) as worker:
        # Those kept all along, the empty prompt's, come first.
        start, cpu, samples = until(1 + WARM)
        end, cpu_end, samples_end = until(1 + WARM + UNITS)
    count = samples_end - samples
    return Rates((end - start) / count, (cpu_end - cpu) / count)


def timed(run: Callable[[], object], images: int) -> Rates:
    start, cpu = time.perf_counter(), time.process_time()
    run()
    return Rates((time.perf_counter() - start) / images, (time.process_time() - cpu) / images)


def parts(maker: UnitMaker) -> dict[str, Rates]:
    """Each part alone, over the samples of four units."""
    looked = [maker._look(UnitId("train", step, 0)) for step in range(4)]
    bucket = looked[0].plan.bucket
    rows = [row for begun in looked for row in begun.rows]
    pictures = [maker._picture(row, bucket) for row in rows]
    texts = [[row["captions"][0]["text"] for row in begun.rows] for begun in looked]
    encoder = maker._encoder
    return {
        "decode": timed(lambda: [maker._picture(row, bucket) for row in rows], len(rows)),
        "VAE": timed(lambda: encoder.latents(bucket, pictures), len(rows)),
        "text": timed(lambda: [encoder.text(said) for said in texts], len(rows)),
    }


@pytest.mark.parametrize(
    ("name", "side", "dtype"), [("VAE slowest", 1024, "float32"), ("decode slowest", 2048, "bfloat16")]
)
def test_the_whole_worker_is_as_fast_as_its_slowest_part(name: str, side: int, dtype: str, tmp_path: Path) -> None:
    make(tmp_path / "encoders")
    make_source(tmp_path, side)
    alone: list[dict[str, Rates]] = []
    together: list[Rates] = []
    for turn in range(TURNS):
        maker = UnitMaker(job(tmp_path, tmp_path / str(turn), dtype))
        if turn % 2:
            together.append(whole(maker))
            maker = UnitMaker(job(tmp_path, tmp_path / f"{turn} again", dtype))
            alone.append(parts(maker))
        else:
            alone.append(parts(maker))
            together.append(whole(maker))
        maker.close()
    part = {
        key: Rates(statistics.median(r[key].wall for r in alone), statistics.median(r[key].cpu for r in alone))
        for key in alone[0]
    }
    mine = Rates(statistics.median(r.wall for r in together), statistics.median(r.cpu for r in together))
    slowest = max(part, key=lambda key: part[key].wall)
    ratio, ratio_cpu = part[slowest].wall / mine.wall, sum(r.cpu for r in part.values()) / mine.cpu
    record(
        "data.json",
        {
            f"encode, {name}": {
                "ours": 1 / mine.wall,
                "peer": 1 / part[slowest].wall,
                "ratio": ratio,
                "target": TARGET,
                "unit": "images/s",
            },
            f"encode, {name}, per core": {
                "ours": 1 / mine.cpu,
                "peer": 1 / sum(r.cpu for r in part.values()),
                "ratio": ratio_cpu,
                "target": TARGET_CPU,
                "unit": "images/s of a core",
            },
        },
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"\nencode, photographs of {side}x{side} to 256x256, {dtype}, tiny encoders, load {load}")
    for key, rates in part.items():
        print(f"  {key + ' alone':14} {1 / rates.wall:8.1f} images/s   {1e3 * rates.cpu:6.2f} ms of CPU an image")
    print(f"  {'worker':14} {1 / mine.wall:8.1f} images/s   {1e3 * mine.cpu:6.2f} ms of CPU an image")
    print(f"  against {slowest}: {ratio:.2f} of {TARGET}; CPU of all parts against it: {ratio_cpu:.2f} of {TARGET_CPU}")
