"""Judging pictures: the model-free operators on one decode against one library call and one decode a judgement."""

import hashlib
import io
import os
import statistics
import time
from collections.abc import Callable
from typing import cast

import cv2
import imagehash
import numpy as np
import pytest
from PIL import Image
from skimage.measure import shannon_entropy
from skimage.restoration import estimate_sigma

from producer.operator.judgement import SIDE
from producer.operator.stage import OPT_IN, OperatorsConfig, build_stage
from producer.scoring import look
from producer.source.shard import RawSample, Reader
from tests.bench.report import record
from tests.unit.producer.damaged import jpeg, photographs

RUNS = 5
TARGET = 3.0


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


# A judgement each, as the libraries' documentation shows them. For blocks and mosaics, along one axis and for one size
# of cell: less than ours do.
PEER: dict[str, Callable[[bytes], object]] = {
    "broken": lambda content: opened(content).load(),
    "resolution": lambda content: opened(content).size,
    "exact_duplicate": lambda content: hashlib.sha256(content).hexdigest(),
    "near_duplicate, phash": lambda content: imagehash.phash(opened(content)),
    "near_duplicate, dhash": lambda content: imagehash.dhash(opened(content)),
    "rotation": lambda content: opened(content).getexif().get(0x0112, 1),
    "clarity": lambda content: cv2.Laplacian(grey(content), cv2.CV_64F).var(),
    "underexposure": lambda content: np.percentile(grey(content), 98),
    "overexposure": lambda content: (grey(content) >= 250).mean(),
    "saturation": lambda content: (cv2.cvtColor(colour(content), cv2.COLOR_BGR2HSV)[..., 1] >= 242).mean(),
    "entropy": lambda content: shannon_entropy(grey(content)),
    "texture": lambda content: (lambda one: np.corrcoef(one[:, 1:].ravel(), one[:, :-1].ravel()))(grey(content)),
    "noise": lambda content: estimate_sigma(grey(content)),
    "compression": lambda content: blocks(grey(content), 8),
    "mosaic": lambda content: blocks(grey(content), 12),
}


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Whole photographs as JPEG of 1024 pixels, as a crawl has them."""
    whole = [pixels for name, pixels in photographs() if "-" not in name]
    sizes = [1024 / max(one.shape[:2]) for one in whole]
    return [
        jpeg(cv2.resize(one, None, fx=by, fy=by, interpolation=cv2.INTER_CUBIC))
        for one, by in zip(whole, sizes, strict=True)
    ]


def test_images_a_second_of_one_core_over_the_model_free_operators(pictures: list[bytes]) -> None:
    assert set(OPT_IN) <= set(PEER), "an operator without a peer would be judged for nothing"
    cv2.setNumThreads(1)
    stage = build_stage(OperatorsConfig.model_validate({name: {} for name in OPT_IN}))

    def ours() -> None:
        raw = [RawSample("x", "x", "x.jpg", 0, len(one), {"raw": "x"}, image=one) for one in pictures]
        samples = [look(cast(Reader, None), one, stage)[1] for one in raw]
        for operator in stage.single:
            assert all(score.value is not None for score in operator.score(samples))

    def peer() -> None:
        for content in pictures:
            for judgement in PEER.values():
                judgement(content)

    seconds: dict[Callable[[], None], list[float]] = {ours: [], peer: []}
    for run in (ours, peer) * RUNS:
        # Of this thread, so that what else the machine does counts for neither.
        start = time.thread_time()
        run()
        seconds[run].append(time.thread_time() - start)
    mine, theirs = (len(pictures) / statistics.median(seconds[run]) for run in (ours, peer))
    case = {"ours": mine, "peer": theirs, "ratio": mine / theirs, "target": TARGET, "unit": "images/s a core"}
    record("curate.json", {"model-free operators": case})
    print(
        f"\n  {len(PEER)} judgements of {len(pictures)} JPEGs of 1024 pixels, load {os.getloadavg()[0]:.1f}: "
        f"ours {mine:.1f} images/s a core, a call and a decode each {theirs:.1f}; {mine / theirs:.2f}x of {TARGET:g}x"
    )
