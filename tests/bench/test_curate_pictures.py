"""Judging pictures: the model-free operators on one decode against one library call and one decode a judgement, and
against data-juicer's operators where it is installed beside this.
"""

import hashlib
import importlib.util
import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import imagehash
import numpy as np
import pytest
import zxingcpp
from PIL import Image
from shapely import Polygon, union_all
from skimage.measure import shannon_entropy
from skimage.restoration import estimate_sigma

from producer.operator.judgement import SIDE, Sample
from producer.operator.reading import Line, read
from producer.operator.stage import OPT_IN, OperatorsConfig, Stage, build_stage
from producer.scoring import look
from producer.source.shard import RawSample, Reader
from tests.bench.report import record
from tests.unit.producer.damaged import jpeg, photographs
from tests.unit.producer.damaged_marks import lettered

RUNS = 5
TARGET = 3.0
# What needs no model once the text is read.
STAGES = {1, 2, 4, 5}


def grey(content: bytes) -> np.ndarray:
    """OpenCV's own decoding, at the side that ours measure at."""
    return small(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE))


def colour(content: bytes) -> np.ndarray:
    return small(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR))


def small(pixels: np.ndarray) -> np.ndarray:
    scale = SIDE / max(pixels.shape[:2])
    return pixels if scale >= 1 else cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def blocks(pixels: np.ndarray, cell: int) -> float:
    """Steps across a grid over those elsewhere: no library has a call for blocks or mosaics."""
    steps = cv2.absdiff(pixels[:, 1:], pixels[:, :-1]).mean(axis=0)
    return float(max(steps[phase::cell].mean() for phase in range(cell)) / (steps.mean() + 1))


def outlines(lines: Sequence[Line]) -> list[Polygon]:
    return [Polygon(line.corners) for line in lines]


# A judgement each, as the libraries' documentation shows them. For blocks and mosaics, along one axis and for one size
# of cell: less than ours do. The lines are read already, for both.
PEER: dict[str, Callable[[bytes, Sequence[Line]], object]] = {
    "broken": lambda content, _: opened(content).load(),
    "resolution": lambda content, _: opened(content).size,
    "exact_duplicate": lambda content, _: hashlib.sha256(content).hexdigest(),
    "near_duplicate, phash": lambda content, _: imagehash.phash(opened(content)),
    "near_duplicate, dhash": lambda content, _: imagehash.dhash(opened(content)),
    "rotation": lambda content, _: opened(content).getexif().get(0x0112, 1),
    "clarity": lambda content, _: cv2.Laplacian(grey(content), cv2.CV_64F).var(),
    "underexposure": lambda content, _: np.percentile(grey(content), 98),
    "overexposure": lambda content, _: (grey(content) >= 250).mean(),
    "saturation": lambda content, _: (cv2.cvtColor(colour(content), cv2.COLOR_BGR2HSV)[..., 1] >= 242).mean(),
    "entropy": lambda content, _: shannon_entropy(grey(content)),
    "texture": lambda content, _: (lambda one: np.corrcoef(one[:, 1:].ravel(), one[:, :-1].ravel()))(grey(content)),
    "intensive_text": lambda _, lines: union_all(outlines(lines)).area,
    "small_character": lambda _, lines: [min(cv2.minAreaRect(np.float32(one.corners))[1]) for one in lines],
    "noise": lambda content, _: estimate_sigma(grey(content)),
    "compression": lambda content, _: blocks(grey(content), 8),
    "mosaic": lambda content, _: blocks(grey(content), 12),
    "code": lambda content, _: zxingcpp.read_barcodes(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)),
}


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Whole photographs as JPEG of 1024 pixels, as a crawl has them; on every fourth some text."""
    whole = [pixels for name, pixels in photographs() if "-" not in name]
    sizes = [1024 / max(one.shape[:2]) for one in whole]
    large = [
        cv2.resize(one, None, fx=by, fy=by, interpolation=cv2.INTER_CUBIC) for one, by in zip(whole, sizes, strict=True)
    ]
    rng = np.random.default_rng(0)
    return [jpeg(cast(np.ndarray, lettered(12, 0.2)(one, rng)) if n % 4 == 0 else one) for n, one in enumerate(large)]


def model_free() -> Stage:
    """The operators of STAGES that look at pictures and are on without a path."""
    names = [name for name, kind in OPT_IN.items() if kind.stage in STAGES and kind.of == "sample"]
    return build_stage(OperatorsConfig.model_validate({name: {} for name in names if not OPT_IN[name]().off_reason()}))


def samples_of(pictures: list[bytes], stage: Stage) -> list[Sample]:
    raw = [RawSample("x", "x", "x.jpg", 0, len(one), {"raw": "x"}, image=one) for one in pictures]
    return [look(cast(Reader, None), one, stage)[1] for one in raw]


def rates(ours: Callable[[], None], peer: Callable[[], None], pictures: int) -> tuple[float, float]:
    """Pictures a second of this thread, so that what else the machine does counts for neither; medians in turns."""
    seconds: dict[Callable[[], None], list[float]] = {ours: [], peer: []}
    for run in (ours, peer) * RUNS:
        start = time.thread_time()
        run()
        seconds[run].append(time.thread_time() - start)
    return pictures / statistics.median(seconds[ours]), pictures / statistics.median(seconds[peer])


def test_images_a_second_of_one_core_over_the_model_free_operators(pictures: list[bytes]) -> None:
    cv2.setNumThreads(1)
    stage = model_free()
    judges = {one.name for one in stage.single} - {"caption", "file_size"}
    assert judges <= PEER.keys(), "an operator without a peer would be judged for nothing"
    assert PEER.keys() - judges == {"exact_duplicate", "near_duplicate, phash", "near_duplicate, dhash"}
    lines = [read(cast(Any, one.picture).finest) for one in samples_of(pictures, stage)]
    assert sum(map(bool, lines)) >= len(pictures) / 4

    def ours() -> None:
        samples = samples_of(pictures, stage)
        for sample, known in zip(samples, lines, strict=True):
            sample.memo["lines"] = known
        for operator in stage.single:
            operator.score(samples)

    def peer() -> None:
        for content, known in zip(pictures, lines, strict=True):
            for judgement in PEER.values():
                judgement(content, known)

    mine, theirs = rates(ours, peer, len(pictures))
    case = {"ours": mine, "peer": theirs, "ratio": mine / theirs, "target": TARGET, "unit": "images/s a core"}
    record("curate.json", {"model-free operators": case})
    print(
        f"\n  {len(PEER)} judgements of {len(pictures)} JPEGs of 1024 pixels, load {os.getloadavg()[0]:.1f}: "
        f"ours {mine:.1f} images/s a core, a call and a decode each {theirs:.1f}; {mine / theirs:.2f}x of {TARGET:g}x"
    )


@pytest.mark.skipif(
    importlib.util.find_spec("data_juicer") is None, reason="py-data-juicer is not installed beside this"
)
def test_images_a_second_of_one_core_against_data_juicer(pictures: list[bytes], tmp_path: Path) -> None:
    """The filters of pictures that its release has without a model: size of the file, sides and shape. Its deduplicator
    stands on imagededup, which wants a torchvision for the very torch at hand.
    """
    from data_juicer.ops.filter.image_aspect_ratio_filter import ImageAspectRatioFilter
    from data_juicer.ops.filter.image_shape_filter import ImageShapeFilter
    from data_juicer.ops.filter.image_size_filter import ImageSizeFilter
    from data_juicer.utils.constant import Fields

    paths = [tmp_path / f"{number}.jpg" for number in range(len(pictures))]
    for path, content in zip(paths, pictures, strict=True):
        path.write_bytes(content)
    filters = [ImageSizeFilter(), ImageShapeFilter(), ImageAspectRatioFilter()]
    cv2.setNumThreads(1)
    stage = build_stage(OperatorsConfig())

    def ours() -> None:
        # With both hashes, mirrored as well, SHA-256 and a whole decode of every picture.
        samples = samples_of([path.read_bytes() for path in paths], stage)
        for operator in stage.single:
            operator.score(samples)

    def peer() -> None:
        rows: dict[str, Any] = {"text": [""] * len(paths), "images": [[str(path)] for path in paths]}
        rows[Fields.stats] = [{} for _ in paths]
        for one in filters:
            rows = one.compute_stats_batched(rows)
        assert len(rows[Fields.stats][0]) == 4

    mine, theirs = rates(ours, peer, len(pictures))
    case = {"ours": mine, "peer": theirs, "ratio": mine / theirs, "target": 1.0, "unit": "images/s a core"}
    record("curate.json", {"size and shape against data-juicer": case})
    print(f"\n  size and shape: ours {mine:.1f} images/s a core, data-juicer {theirs:.1f}; {mine / theirs:.2f}x")
