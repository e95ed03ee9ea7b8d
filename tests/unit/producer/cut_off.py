"""Writers of the cache that are killed, in processes of their own."""

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from producer.api.bucket import Bucket
from producer.cache import CacheConfig, LatentCache, LatentKey
from producer.cache_file import CacheFile, Layout
from tests.unit.producer.damage import latent

BUCKETS = (Bucket(32, 32), Bucket(32, 48))
KEYS = [LatentKey(f"s{n}", "c", BUCKETS[n % 2], "e") for n in range(400)]
LINES = 6000  # of the cache's own code that one writer runs through, about


def kills(start: int, stop: int) -> dict[str, int]:
    """Kill a writer a seed, at a line of its code or some moment; what a look at the same cache then found."""
    seen: Counter[str] = Counter()
    root = Path(tempfile.mkdtemp())
    for seed in range(start, stop):
        rng = random.Random(seed)
        child = os.fork()
        if child == 0:
            _write_until(root, seed, rng.randrange(LINES) if seed % 2 else None)
        if seed % 2 == 0:
            time.sleep(rng.random() * 0.1)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        seen["killed"] += status == signal.SIGKILL
        seen["trials"] += 1
        seen["left half-written"] += len(list(root.rglob("*.part")))
        seen.update(_problems(root))
    return seen


def _write_until(root: Path, seed: int, line: int | None) -> None:
    """Put random latents again and again; be killed before the given line of the cache's code."""
    if line is not None:
        left = line

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if not os.path.basename(frame.f_code.co_filename).startswith("cache"):
                return None
            left -= event == "line"
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
    rng = random.Random(seed)
    cache = LatentCache(CacheConfig(path=root, spare_bytes=0))
    while True:
        some = rng.sample(range(len(KEYS)), 3)
        cache.put({KEYS[n]: latent(n, KEYS[n].bucket) for n in some})
        cache.flush()


def _problems(root: Path) -> Counter[str]:
    """What is wrong with the cache after a writer died, as its next user finds it."""
    wrong: Counter[str] = Counter()
    for bucket in BUCKETS:
        layout = Layout(f"mean logvar e {bucket}", ("mean", "logvar"))
        for path in (root / "e" / str(bucket)).glob("*.arrow"):
            file = CacheFile(path, layout)
            wrong["partial"] += len(list(file.records())) != file.rows
    cache = LatentCache(CacheConfig(path=root, spare_bytes=0))
    for key, value in cache.get(KEYS).items():
        wrong["other values"] += value.mean.tobytes() != latent(int(key.sample[1:]), key.bucket).mean.tobytes()
    wrong["damaged"] += cache.counts["damaged"]
    wrong["left over"] += len(list(root.rglob("*.part")))
    for bucket in BUCKETS:
        layout = Layout(f"mean logvar e {bucket}", ("mean", "logvar"))
        files = [CacheFile(path, layout) for path in (root / "e" / str(bucket)).glob("*.arrow")]
        ids = [record.id for file in files for record in file.records()]
        wrong["twice"] += len(ids) - len(set(ids))
    return wrong
