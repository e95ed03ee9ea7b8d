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

from producer.clusters import Age
from producer.neighbours import Hashes
from producer.operator.judgement import SIDE, Clusters, Facts
from producer.operator.near_duplicate import NearDuplicate, NearDuplicateConfig, hash_pixels
from producer.operator.stage import OPT_IN, OperatorsConfig, build_stage
from producer.scoring import look
from producer.source.shard import RawSample, Reader
from tests.bench.report import peak_growth, record
from tests.unit.producer.damaged import jpeg, photographs

RUNS = 5
MILLION = 1_000_000
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


def natural(number: int, seed: int) -> Hashes:
    """Hashes of pictures whose frequencies fall as in photographs, without drawing them: 9 x 9 frequencies each."""
    draw = np.random.default_rng(seed)
    across, down = np.meshgrid(np.arange(9), np.arange(9))
    size = (1 / np.maximum(1, np.hypot(across, down))).astype(np.float32)
    waves = [np.cos(np.pi * (np.arange(points)[:, None] + 0.5) * np.arange(9) / points) for points in (8, 9)]
    found = []
    for first in range(0, number, 1 << 16):
        low = draw.standard_normal((min(1 << 16, number - first), 9, 9), dtype=np.float32) * size
        for coefficients in (low, low * np.resize(np.asarray([1, -1], np.float32), 9)):
            small = np.einsum("yu,nuv,xv->nyx", *(waves[0], coefficients, waves[1]), optimize=True)
            part = coefficients[:, :8, :8].reshape(-1, 64)
            found += [part > np.median(part[:, 1:], axis=1)[:, None], (small[:, :, 1:] > small[:, :, :-1]).reshape(-1, 64)]
    words = [np.packbits(flags, axis=1).view(">u8").ravel().astype(np.uint64) for flags in found]
    return Hashes(*(np.concatenate(words[kind::4]) for kind in range(4)))


def again(pixels: np.ndarray, quality: int, kind: str = "JPEG") -> np.ndarray:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, kind, quality=quality)
    return np.asarray(opened(out.getvalue()).convert("RGB"))


def tinted(pixels: np.ndarray) -> np.ndarray:
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV).astype(np.int64)
    hsv[..., 0], hsv[..., 1] = (hsv[..., 0] + 4) % 180, np.minimum(255, hsv[..., 1] * 1.1)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


def resized(by: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: cv2.resize(pixels, None, fx=by, fy=by, interpolation=cv2.INTER_AREA if by < 1 else cv2.INTER_CUBIC)


def cropped(share: float) -> Callable[[np.ndarray], np.ndarray]:
    def crop(pixels: np.ndarray) -> np.ndarray:
        top, left = (int(size * share / 2) for size in pixels.shape[:2])
        return pixels[top : pixels.shape[0] - top, left : pixels.shape[1] - left]

    return crop


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG of quality 40": lambda pixels: again(pixels, 40),
    "WebP of quality 50": lambda pixels: again(pixels, 50, "WEBP"),
    "8 % smaller": resized(0.92),
    "half the size": resized(0.5),
    "1.7 times the size": resized(1.7),
    "brighter": lambda pixels: np.clip(pixels * 1.05 + 4, 0, 255).astype(np.uint8),
    "darker": lambda pixels: (pixels * 0.9).astype(np.uint8),
    "another gamma": lambda pixels: ((pixels / 255) ** 0.9 * 255).astype(np.uint8),
    "another hue": tinted,
    "grey": lambda pixels: np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2),
    "mirrored": lambda pixels: pixels[:, ::-1],
    "mirrored, smaller, JPEG of quality 40": lambda pixels: again(resized(0.92)(pixels[:, ::-1]), 40),
}
CROPS = {f"cropped by {share:.0%}": cropped(share) for share in (0.02, 0.05, 0.1)}


def test_near_duplicates_among_a_million_hashes() -> None:
    """Planted copies of real photographs, crowds of equal and nearly equal pictures, and a million others."""
    whole = [small(pixels) for _, pixels in photographs() if min(pixels.shape[:2]) >= 150]
    planted = [(name, number, hash_pixels(small(copy(one)))) for name, copy in (COPIES | CROPS).items() for number, one in enumerate(whole)]
    background = natural(MILLION, seed=0)
    crowd = np.repeat(np.asarray([hash_pixels(whole[0])], np.uint64), 20_000, axis=0)
    crowd[10_000:] ^= np.uint64(1) << np.random.default_rng(1).integers(0, 64, (10_000, 4)).astype(np.uint64)
    others = np.asarray([hash_pixels(one) for one in whole] + [hashes for _, _, hashes in planted], np.uint64)
    hashes = Hashes(*(np.concatenate(parts) for parts in zip(background, others.T, crowd.T, strict=True)))
    number = len(hashes.phash)
    age = Age(np.ones(number, np.int64), np.arange(number)[::-1].copy(), np.full(number, np.nan))
    facts = Facts(age, np.zeros((number, 2), np.uint64), hashes)
    found: list[Clusters] = []
    start = time.thread_time()
    memory = peak_growth(lambda: found.append(NearDuplicate(NearDuplicateConfig()).cluster(facts)))
    seconds = time.thread_time() - start
    kept = found[0].representative[MILLION:]
    recall = {name: [] for name in COPIES | CROPS}
    for place, (name, of, _) in enumerate(planted, len(whole)):
        recall[name].append(kept[place] == kept[of])
    shares = {name: float(np.mean(hits)) for name, hits in recall.items()}
    copies = float(np.mean([hit for name in COPIES for hit in recall[name]]))
    same = sum(kept[one] == kept[other] for one in range(len(whole)) for other in range(one))
    pairs = len(whole) * (len(whole) - 1) // 2
    wrong = int((found[0].representative[:MILLION] != np.arange(MILLION)).sum())
    record(
        "curate.json",
        {
            "near duplicates, seconds for a million": {"ours": seconds, "peer": 60.0, "ratio": 60 / seconds, "target": 1.0, "unit": "s"},
            "near duplicates, memory for a million": {"ours": memory / 1e9, "peer": 2.0, "ratio": 2e9 / memory, "target": 1.0, "unit": "GB"},
            "near duplicates, copies missed": {"ours": 1 - copies, "peer": 0.01, "ratio": 0.01 / max(1e-9, 1 - copies), "target": 1.0, "unit": "share"},
            "near duplicates, pairs of photographs confused": {"ours": same / pairs, "peer": 1e-4, "ratio": 1e-4 / max(same / pairs, 1e-9), "target": 1.0, "unit": "share"},
        },
    )
    print(f"
  {number} hashes: {seconds:.1f} s of one core, {memory / 1e6:.0f} MB, load {os.getloadavg()[0]:.1f}")
    print(f"  recall {copies:.4f} over {len(COPIES)} kinds of copies of {len(whole)} photographs; by kind, crops beside it:")
    print("".join(f"    {share:.3f} {name}
" for name, share in shares.items()))
    print(f"  {same} of {pairs} pairs of different photographs confused, {wrong} of {MILLION} others joined to anything")
    assert copies >= 0.99 and same <= pairs / 1e4
