"""`python full_disk.py FOLDER`: a cache, a journal and a fleet on a disk of 6 MB that fills up and is cleared.

Says what was seen as JSON; a text is why it cannot be tried here.
"""

# ruff: noqa: E402
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.disk import filled, mounted

DISK = Path(sys.argv[1])
try:
    # Before anything starts a thread: the kernel does not let a process with threads.
    mounted(6_000_000, DISK)
except OSError as error:
    print(json.dumps(str(error)))
    sys.exit()

import logging
import tempfile
import time
from typing import Any

from producer import cache as module
from producer.cache import CacheConfig, LatentCache
from producer.rejects import Rejects
from producer.synthetic import SyntheticMaker
from tests.unit.producer.cut_off import KEYS
from tests.unit.producer.damage import latent
from tests.unit.producer.farm import JOB, farm, train


def _full_cache(disk: Path) -> dict[str, Any]:
    module._PAUSE_S, module._GATHER_S, module._GATHER_BYTES = (1e-3, 0.01), 0.0, 10_000
    # It would see that the disk is full before it writes: here the write itself is to fail.
    module.Space._free = lambda self: 10**12  # type: ignore[method-assign]
    spoken: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: spoken.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("producer.cache").addHandler(handler)
    cache = LatentCache(CacheConfig(path=disk / "cache", spare_bytes=0))
    put = lambda n: cache.put({KEYS[n]: latent(n, KEYS[n].bucket)})  # noqa: E731
    put(0)
    filled(disk / "ballast")
    for n in range(1, 100):
        put(n)
        time.sleep(0.001)
    why, partial = cache.full, len([*(disk / "cache").rglob("*.part")])
    kept = len(LatentCache(CacheConfig(path=disk / "cache", spare_bytes=0)).get(KEYS))
    (disk / "ballast").unlink()
    for n in range(100, 200):
        time.sleep(0.001)
        put(n)
    cache.flush()
    again = LatentCache(CacheConfig(path=disk / "cache", spare_bytes=0))
    return {
        "why": why,
        "partial": partial,
        "kept while full": kept,
        "kept after": len(again.get(KEYS)),
        "written": cache.counts["written"],
        "unwritten": cache.counts["unwritten"],
        "still full": cache.full,
        "damaged": again.counts["damaged"],
        "said": spoken,
    }


def _full_journal(disk: Path) -> dict[str, Any]:
    class Rejecting(SyntheticMaker):
        """Leaves a sample of each unit out, as UnitMaker does: journaled first."""

        def __call__(self, unit: Any) -> Any:
            batch, _ = super().__call__(unit)
            if unit == train(0, 1):
                rejects.add(self.offer.plan, unit, [("sample", "x" * 5000)])
            return batch, 0

    folder = Path(tempfile.mkdtemp())
    rejects = Rejects(disk / "rejects.jsonl")
    rejects.add("before", train(9, 9), [("a", "b")])
    filled(disk / "ballast")
    with farm(folder) as running:
        running.worker("w0", Rejecting(JOB))
        source = running.source(wait_s=60.0)
        source.hello(0)
        source.fetch(train(0, 0))
        deadline = time.monotonic() + 60
        while not (troubles := running.status()["troubles"]) and time.monotonic() < deadline:
            time.sleep(0.05)
        held = [str(unit) for unit in running.workers[0]._ring.list()[0]]
        journaled = Rejects(disk / "rejects.jsonl").known(running.offer.plan, train(0, 1))
        (disk / "ballast").unlink()
        rows = source.fetch(train(0, 1)).num_rows
    after = Rejects(disk / "rejects.jsonl")
    return {
        "troubles": troubles,
        "held": held,
        "journaled while full": journaled,
        "served": rows,
        "journaled": sorted(after.known(running.offer.plan, train(0, 1))),
        "from before": after.known("before", train(9, 9)),
    }


print(json.dumps(_full_cache(DISK) | _full_journal(DISK)))
