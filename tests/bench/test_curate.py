"""Near-duplicates among a million pictures: seconds, memory, copies found and pictures confused; and crops, which
hashes lose, among embeddings.

`INKSTONE_BENCH_ENCODER=FOLDER make bench-curate` asks an encoder of yours for the embeddings, such as a released SigLIP
2 (any folder that operators.embedding.model takes). Without it they are those of random weights, and labelled so: what
a network sees before it has learnt anything, no measure of a released one.
"""

import io
import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from producer.clusters import Age
from producer.neighbours import Hashes
from producer.operator.encoder import Encoder
from producer.operator.judgement import SIDE, Clusters, Facts
from producer.operator.near_duplicate import NearDuplicate, NearDuplicateConfig, hash_pixels
from tests.bench.crops_case import CONFUSED, cosines, crops_found, embedded, least_cosine, random_siglip
from tests.bench.report import peak_growth, record
from tests.unit.producer.damaged import photographs

MILLION = 1_000_000
ENCODER = "INKSTONE_BENCH_ENCODER"
# A stereo camera's two views of one scene: to an embedding they should be no different photographs.
STEREO = ("_left", "_right")


def small(pixels: np.ndarray) -> np.ndarray:
    scale = SIDE / max(pixels.shape[:2])
    return pixels if scale >= 1 else cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


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
            found.append(part > np.median(part[:, 1:], axis=1)[:, None])
            found.append((small[:, :, 1:] > small[:, :, :-1]).reshape(-1, 64))
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
    how = cv2.INTER_AREA if by < 1 else cv2.INTER_CUBIC
    return lambda pixels: cv2.resize(pixels, None, fx=by, fy=by, interpolation=how)


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
CROPS = {f"cropped by {share:.0%}": cropped(share) for share in (0.02, 0.05, 0.1, 0.2)}


def originals() -> dict[str, np.ndarray]:
    """Photographs and their parts by name, as operators see them."""
    return {name: small(pixels) for name, pixels in photographs() if min(pixels.shape[:2]) >= 150}


def hashed(pictures: Iterable[np.ndarray]) -> np.ndarray:
    """Their hashes [n, 4]."""
    return np.asarray([hash_pixels(one) for one in pictures], np.uint64)


def within(own: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Whether each copy is within the radius of its original, mirrored or not, from hashes [n, 4] of both."""
    ways = [(own[:, :2], copies[:, :2]), (own[:, :2], copies[:, 2:]), (own[:, 2:], copies[:, :2])]
    apart = [np.bitwise_count(one ^ other).max(axis=1) for one, other in ways]
    return np.min(apart, axis=0) <= NearDuplicateConfig().radius


def test_near_duplicates_among_a_million_hashes() -> None:
    """Planted copies of real photographs, crowds of equal and nearly equal pictures, and a million others."""
    whole = originals().values()
    copies = {name: hashed(small(copy(one)) for one in whole) for name, copy in (COPIES | CROPS).items()}
    own = hashed(whole)
    crowd = np.repeat(np.random.default_rng(1).integers(0, 2**64, (1, 4), np.uint64), 20_000, axis=0)
    crowd[10_000:] ^= np.uint64(1) << np.random.default_rng(2).integers(0, 64, (10_000, 4), np.uint64)
    parts = [natural(MILLION, seed=0), own.T, *(one.T for one in copies.values()), crowd.T]
    hashes = Hashes(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    number = len(hashes.phash)
    age = Age(np.ones(number, np.int64), np.ones(number, np.int64), np.full(number, np.nan))
    facts = Facts(age, np.zeros((number, 2), np.uint64), hashes)
    found: list[Clusters] = []
    start = time.thread_time()
    memory = peak_growth(lambda: found.append(NearDuplicate(NearDuplicateConfig()).cluster(facts)))
    seconds = time.thread_time() - start

    kept = found[0].representative
    first, *groups = np.split(kept[MILLION : number - len(crowd)], len(copies) + 1)
    # By itself: in the set a copy may also be joined by way of another one.
    near = {name: within(own, copy) for name, copy in copies.items()}
    assert all((group == first)[near[name]].all() for name, group in zip(copies, groups, strict=True))
    recall = {name: float(hits.mean()) for name, hits in near.items()}
    missed = 1 - statistics.mean(recall[name] for name in COPIES)
    pairs = len(whole) * (len(whole) - 1) // 2
    confused = sum(int((first[:one] == first[one]).sum()) for one in range(len(whole))) / pairs
    joined = int((kept[:MILLION] != np.arange(MILLION)).sum())
    cases = {
        "seconds for a million": (seconds, 60.0, "s"),
        "memory for a million": (memory / 1e9, 2.0, "GB"),
        "copies missed": (missed, 0.01, "share"),
        "photographs confused": (confused, 1e-4, "share of pairs"),
    }
    for name, (ours, most, unit) in cases.items():
        ratio = most / max(ours, most / 1000)  # what is not there at all counts as a thousandth of what may be
        case = {"ours": ours, "peer": most, "ratio": ratio, "target": 1.0, "unit": unit}
        record("curate.json", {f"near duplicates, {name}": case})
    print(f"\n  {number} hashes: {seconds:.1f} s of one core, {memory / 1e6:.0f} MB, load {os.getloadavg()[0]:.1f}")
    for name, share in recall.items():
        print(f"    {share:.3f} of {len(whole)} found: {name}")
    print(f"  {1 - missed:.4f} in all, crops aside; {confused:.1e} of {pairs} pairs of photographs confused;")
    print(f"  {joined} of {MILLION} others joined to something")
    assert missed <= 0.01 and confused <= 1e-4
    assert len(set(kept[-len(crowd) :])) == 1


def scene(name: str) -> str:
    """What a photograph or a part of it shows: parts of one photograph overlap."""
    stem = name.split(".")[0]
    for end in STEREO:
        stem = stem.removesuffix(end)
    return stem


def test_crops_among_embeddings_beside_hashes(tmp_path: Path) -> None:
    """At the cosine above which hardly any two different photographs lie."""
    folder = os.environ.get(ENCODER)
    encoder = Encoder(ENCODER, Path(folder) if folder else random_siglip(tmp_path))
    label = encoder.folder.name if folder else "a SigLIP of random weights"
    named = originals()
    whole, scenes = list(named.values()), np.asarray([scene(name) for name in named])
    hashes, own = hashed(whole), embedded(encoder, whole)
    between = cosines(own, own)
    least, pairs = least_cosine(between, scenes), int(np.triu(scenes[:, None] != scenes).sum())
    print(
        f"\n  embeddings of {label}: above {least:.4f} at most {CONFUSED:g} of {pairs} pairs of different photographs"
    )
    for name, crop in CROPS.items():
        cut = [small(crop(one)) for one in whole]
        one = crops_found(between, cosines(own, embedded(encoder, cut)), scenes)
        peer = float(within(hashes, hashed(cut)).mean())
        # Nothing is asked of crops, so there is no target; none found by hash counts as one.
        ratio, unit = one.recall / max(peer, 1 / len(whole)), "share of crops found, against the hash's"
        case = {"ours": one.recall, "peer": peer, "ratio": ratio, "target": None, "unit": unit}
        record("curate.json", {f"{name}, embeddings of {label}": case})
        print(
            f"    {one.recall:.3f} ({one.low:.3f} to {one.high:.3f}) found: {name}; by hash {peer:.3f}; nearest to "
            f"their own {one.nearest:.3f}; {one.confused:.1e} of pairs with different photographs above"
        )
    # What is not cropped is found, or this encoder tells no two pictures apart.
    assert (np.diag(between) > least).all()
