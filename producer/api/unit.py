"""A unit: the encoded samples of one bucket that a trainer rank pulls and trains on together.

It travels and rests as one Arrow record batch, a row a sample. Each row ends in a checksum of all that it holds, and
the header has one, since neither Arrow nor a transport notices a flipped bit. `pack` and `unpack` are the only writers
and readers; what `unpack` returns lies in the batch's own memory.
"""

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

VERSION = 2

_HEADER, _HEADER_CRC = "inkstone.unit", "inkstone.crc"

_REFERENCE = pa.struct(
    [
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("mean", pa.large_binary()),
        ("logvar", pa.large_binary()),
    ]
)

SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # the sample's name in the index
        ("source", pa.string()),  # provenance: which configured source it came from
        ("shard", pa.string()),  # provenance: the file inside that source
        ("task", pa.string()),  # t2i now; ti2i and i2i carry references
        ("split", pa.string()),  # which caption it is: raw, recaption, fused
        ("caption", pa.string()),
        ("height", pa.int32()),  # pixels
        ("width", pa.int32()),
        ("channels", pa.int32()),  # latent channels
        ("mean", pa.large_binary()),  # float16 [channels, height / 8, width / 8], posterior mean
        ("logvar", pa.large_binary()),  # float16, posterior log-variance
        ("tokens", pa.int32()),  # text tokens
        (
            "text",
            pa.large_binary(),
        ),  # bfloat16 bits [tokens, e], last hidden state after the template's prefix
        ("references", pa.list_(_REFERENCE)),  # pictures an edit starts from, with their own sizes
        ("checksum", pa.uint64()),  # XXH3 of every column before it: an eighth of CRC-32's time
    ]
)


class UnitError(ValueError):
    """A unit is damaged or of a kind this reader does not know; the message names the unit and the sample."""


class UnitId(NamedTuple):
    """Which unit of the plan: `stream` is "train", "validation" or "empty" (the empty prompt alone)."""

    stream: str
    step: int
    unit: int

    def __str__(self) -> str:
        return f"{self.stream} step {self.step} unit {self.unit}"


@dataclass(frozen=True, eq=False)
class Latent:
    """The VAE's posterior of one picture, before normalisation; float16 [c, height / 8, width / 8] each."""

    height: int
    width: int
    mean: np.ndarray
    logvar: np.ndarray


@dataclass(frozen=True, eq=False)
class Encoded:
    """One encoded sample. `text` is uint16 [tokens, e]: the bits of a bfloat16 array."""

    key: str
    source: str
    shard: str
    task: str
    split: str
    caption: str
    latent: Latent
    text: np.ndarray
    references: tuple[Latent, ...] = ()


@dataclass(frozen=True)
class Header:
    """What a unit says of itself. `rejected` samples of the plan are missing from it, each for a journaled reason."""

    plan: str
    unit: UnitId
    encoder: str
    rejected: int = 0


def pack(header: Header, samples: Sequence[Encoded]) -> pa.RecordBatch:
    """`samples` as one record batch whose schema carries `header`."""
    rows = [_row(sample) for sample in samples]
    said = {field.name: getattr(header, field.name) for field in fields(header)}
    text = json.dumps({"version": VERSION, "samples": len(rows), **said})
    metadata = {_HEADER: text, _HEADER_CRC: str(zlib.crc32(text.encode()))}
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))


def header_of(batch: pa.RecordBatch) -> Header:
    """The header of a unit, without touching its rows."""
    metadata = batch.schema.metadata or {}
    raw = metadata.get(_HEADER.encode())
    if raw is None:
        raise UnitError(f"not a unit: the record batch carries no {_HEADER} header")
    if metadata.get(_HEADER_CRC.encode()) != str(zlib.crc32(raw)).encode():
        raise UnitError("the header's checksum differs; the unit was damaged on disk or on the wire")
    said = json.loads(raw)
    version, samples = said.pop("version", None), said.pop("samples", None)
    if version != VERSION:
        raise UnitError(f"unit version {version}, this reader knows {VERSION}: use one release on both sides")
    header = Header(**said | {"unit": UnitId(*said["unit"])})
    if samples != batch.num_rows:
        raise UnitError(f"{header.unit}: {batch.num_rows} rows, the header says {samples}; rows were lost")
    return header


def unpack(batch: pa.RecordBatch) -> tuple[Header, list[Encoded]]:
    """The header and samples of a unit; every checksum and size, and the latents' values, are checked first."""
    header = header_of(batch)
    if not batch.schema.equals(SCHEMA):
        # Its own names are not said: a damaged one may not even be text.
        raise UnitError(f"{header.unit}: its columns are not {SCHEMA.names} of the types this reader knows")
    try:
        # Offsets that a flip sent out of bounds would be followed blindly.
        batch.validate(full=True)
    except pa.ArrowException as error:
        raise UnitError(f"{header.unit}: {error}; the unit was damaged on disk or on the wire") from None
    rows = zip(*map(_cells, batch.columns), strict=True)
    return header, [_sample(dict(zip(SCHEMA.names, row, strict=True)), header.unit) for row in rows]


def _cells(column: pa.Array) -> list[object]:
    """The column's values, large bytes as views of its memory: Arrow's own scalars and `to_pylist` copy them."""
    if len(column) and pa.types.is_large_binary(column.type):
        _, offsets, data = column.buffers()
        ends = np.frombuffer(offsets, np.int64, len(column) + 1, 8 * column.offset)
        view = memoryview(data or b"")
        return [view[start:end] for start, end in pairwise(ends.tolist())]
    if pa.types.is_list(column.type):
        entries = _cells(column.values)
        return [entries[start:end] for start, end in pairwise(column.offsets.to_pylist())]
    if pa.types.is_struct(column.type):
        names = column.type.names
        # Damaged lengths can leave a field longer than its struct.
        rows = zip(*(_cells(column.field(name).slice(0, len(column))) for name in names), strict=True)
        return [dict(zip(names, row, strict=True)) for row in rows]
    return list(column.to_pylist())


def _row(sample: Encoded) -> dict[str, object]:
    row: dict[str, object] = {
        "key": sample.key,
        "source": sample.source,
        "shard": sample.shard,
        "task": sample.task,
        "split": sample.split,
        "caption": sample.caption,
        "channels": sample.latent.mean.shape[0],
        "tokens": sample.text.shape[0],
        "text": _raw(sample.text, "<u2"),
        "references": [_latent_row(reference) for reference in sample.references],
        **_latent_row(sample.latent),
    }
    return row | {"checksum": checksum(row)}


def _latent_row(latent: Latent) -> dict[str, object]:
    return {
        "height": latent.height,
        "width": latent.width,
        "mean": _raw(latent.mean, "<f2"),
        "logvar": _raw(latent.logvar, "<f2"),
    }


def _raw(values: np.ndarray, kind: str) -> memoryview:
    """The bytes of `values` as little-endian `kind`, copied only if they are not that already."""
    return np.ascontiguousarray(values, kind).reshape(-1).view(np.uint8).data


def checksum(row: dict[str, object]) -> int:
    """XXH3 (64 bits) of a row's values in the schema's order, each with its length before it."""
    seen = xxhash.xxh3_64()
    for name in SCHEMA.names[:-1]:
        _fold(row[name], seen)
    return int(seen.intdigest())


def _fold(value: object, seen: xxhash.xxh3_64) -> None:
    if isinstance(value, list):
        seen.update(b"list %d" % len(value))
        for entry in value:
            for name in _REFERENCE.names:
                _fold(entry[name], seen)
        return
    raw = value if isinstance(value, memoryview) else str(value).encode("utf-8", "surrogatepass")
    seen.update(b"%d:" % len(raw))
    seen.update(raw)


def _sample(row: dict[str, object], unit: UnitId) -> Encoded:
    where = f"{unit}, sample {row['key']!r}"
    if row["checksum"] != checksum(row):
        raise UnitError(f"{where}: checksum differs; the unit was damaged on disk or on the wire")
    channels, tokens = int(str(row["channels"])), int(str(row["tokens"]))
    text = np.frombuffer(_view(row["text"]), "<u2")
    if text.size % tokens if tokens else text.size:
        raise UnitError(f"{where}: {text.size} text values are no multiple of {tokens} tokens")
    references = row["references"] or []
    assert isinstance(references, list)
    names = ("key", "source", "shard", "task", "split", "caption")
    return Encoded(
        **{name: str(row[name]) for name in names},
        latent=_latent(row, channels, where),
        text=text.reshape(tokens, -1) if tokens else text.reshape(0, 0),
        references=tuple(_latent(entry, channels, where) for entry in references),
    )


def _latent(row: dict[str, object], channels: int, where: str) -> Latent:
    height, width = int(str(row["height"])), int(str(row["width"]))
    if height % 16 or width % 16:
        raise UnitError(f"{where}: a picture of {height}x{width} is no multiple of 16")
    shape = (channels, height // 8, width // 8)
    planes = []
    for name in ("mean", "logvar"):
        values = np.frombuffer(_view(row[name]), "<f2")
        if values.size != math.prod(shape):
            raise UnitError(f"{where}: {name} holds {values.size} values, {shape} needs {math.prod(shape)}")
        # All exponent bits set: numpy's isfinite takes four times as long on float16.
        if (values.view("<u2") & 0x7C00).max(initial=0) == 0x7C00:
            raise UnitError(f"{where}: {name} holds NaN or infinity")
        planes.append(values.reshape(shape))
    return Latent(height, width, *planes)


def _view(value: object) -> memoryview:
    assert isinstance(value, memoryview)
    return value
