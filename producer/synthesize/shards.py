"""Samples into webdataset tars: NAME.png (or .jpg), NAME.txt with the caption, NAME.json with the truth."""

import filecmp
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from pydantic import BaseModel, Field, model_validator

from producer.output_folder import make_folder
from producer.synthesize.sample import Sample


class ShardsConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    out: Path  # folder of the tars
    shard: int = Field(default=1000, ge=1)  # samples a tar
    first: int = Field(default=0, ge=0)  # index of the first sample: machines divide the work by it, in whole tars
    format: Literal["png", "jpg"] = "png"
    jpg_quality: int = Field(default=92, ge=1, le=100)

    @model_validator(mode="after")
    def _whole_tars(self) -> "ShardsConfig":
        if self.first % self.shard:
            raise ValueError(
                f"shards.first: {self.first} is inside a tar of shards.shard {self.shard} samples; make it a multiple "
                f"of {self.shard}"
            )
        return self


class Way(Protocol):
    """A way of synthesis."""

    name: str

    def make(self, index: int) -> Sample:
        """Sample `index`."""


class Written(NamedTuple):
    """A tar that is in place, whole."""

    path: Path
    samples: int
    first: list[Sample]  # as many as were asked to be kept


def write_shards(way: Way, count: int, config: ShardsConfig, *, keep: int = 0) -> Iterator[Written]:
    """Write `count` samples of `way` from `config.first` on, a tar at a time; `keep` of them are given back to look at.

    One picture is held at a time. A tar that is there with the same bytes is left alone, and with it what was scored.
    """
    make_folder("shards.out", config.out)
    end = config.first + count
    for start in range(config.first, end, config.shard):
        numbers = range(start, min(start + config.shard, end))
        path = config.out / f"{way.name}-{start // config.shard:05d}.tar"
        first = _write_tar(path, (way.make(index) for index in numbers), config, keep)
        keep -= len(first)
        yield Written(path, len(numbers), first)


def begun(out: Path) -> dict[str, tuple[int, int]]:
    """The tars in `out` that are being written, how large each is and since when: it changes while that goes on."""
    found = {}
    for path in out.glob(".*.tar.part"):
        try:
            said = path.stat()
        except FileNotFoundError:
            # It has just come into its place.
            continue
        found[path.name] = said.st_size, said.st_mtime_ns
    return found


def _write_tar(path: Path, samples: Iterator[Sample], config: ShardsConfig, keep: int) -> list[Sample]:
    aside = path.with_name(f".{path.name}.part")
    first: list[Sample] = []
    with tarfile.open(aside, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            truth = json.dumps({"truth": sample.truth.model_dump(mode="json")}, ensure_ascii=False, sort_keys=True)
            members = {
                config.format: _encoded(sample, config),
                "txt": f"{sample.caption}\n".encode(),
                "json": truth.encode(),
            }
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{sample.truth.way}-{sample.truth.index:09d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            if len(first) < keep:
                first.append(sample)
    if path.is_file() and filecmp.cmp(aside, path, shallow=False):
        aside.unlink()
    else:
        os.replace(aside, path)
    return first


def _encoded(sample: Sample, config: ShardsConfig) -> bytes:
    out = io.BytesIO()
    if config.format == "jpg":
        sample.image.save(out, "JPEG", quality=config.jpg_quality)
    else:
        sample.image.save(out, "PNG")
    return out.getvalue()
