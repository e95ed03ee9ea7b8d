"""Synthesis on Ray, a task a tar: the same bytes as by one process, since each sample follows from its index."""

import functools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from producer.patience import rows_of, within
from producer.synthesize.shards import Way, begun, write_shards
from producer.synthesize.ways import SynthesizeSettings, ways


def spread(settings: SynthesizeSettings) -> Iterator[tuple[Path, int]]:
    """Have all tars made; each as it is there, and how many samples it has. Raises ClusterError, StallError.

    On a cluster all nodes see `shards.out`, the fonts, texts, photographs and layouts at the same paths.
    """
    # Here, since who makes samples in one process needs no Ray.
    from producer.cluster import cluster, dataset

    workers, said = settings.workers, settings.absolute().model_dump_json()
    with cluster(workers.address, object_store_bytes=workers.object_store_mb << 20, setting="workers.address"):
        made = dataset(list(tars(settings))).map(partial(make_tar, settings=said), num_cpus=workers.cpus)
        for row in within(rows_of(made), workers.stall_s, "workers.stall_s", partial(begun, settings.shards.out)):
            yield Path(row["path"]), row["samples"]


def tars(settings: SynthesizeSettings) -> Iterator[dict[str, Any]]:
    """What each task is given: the way, and which of its samples."""
    shards = settings.shards
    for name, count in settings.count.model_dump().items():
        end = shards.first + count
        for first in range(shards.first, end, shards.shard):
            yield {"way": name, "first": first, "samples": min(shards.shard, end - first)}


def make_tar(row: dict[str, Any], settings: str) -> dict[str, Any]:
    """A task: write the tar of `row`, and say where it is."""
    config, by_name = _opened(settings)
    shards = config.shards.model_copy(update={"first": row["first"]})
    (made,) = write_shards(by_name[row["way"]], row["samples"], shards)
    return {"path": str(made.path), "samples": made.samples}


@functools.lru_cache(maxsize=1)
def _opened(settings: str) -> tuple[SynthesizeSettings, dict[str, Way]]:
    """Once a worker process, so that fonts and texts are read once."""
    config = SynthesizeSettings.model_validate_json(settings, strict=True)
    return config, {way.name: way for way, _ in ways(config)[0]}
