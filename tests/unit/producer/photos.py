"""A small source and its index: real pictures in a tar, one of them broken."""

import hashlib
import io
from pathlib import Path

import pyarrow as pa
import webdataset
from PIL import Image
from skimage import data

from producer.index import write_generation
from producer.source.reader import SourceConfig, open_source
from tests.unit.producer.rows import table

ROWS = 12
BROKEN = "photos/003"


def jpeg(number: int) -> bytes:
    out = io.BytesIO()
    picture = data.astronaut()[20 * number : 20 * number + 160, 50:210]
    Image.fromarray(picture).save(out, "JPEG")
    # One is cut short, as if curation had let it through.
    return out.getvalue()[: 2000 if number == 3 else None]


def captions(number: int) -> list[dict[str, object]]:
    words = "an astronaut " * (1 + number % 4) + str(number)
    return [{"split": "raw", "text": words, "tokens": 4 + 3 * (number % 4), "kept": True, "reason": ""}]


def make_photos(folder: Path) -> Path:
    """Write `folder`/raw, a tar of pictures, and `folder`/index; `folder` again."""
    (folder / "raw").mkdir()
    with webdataset.TarWriter(str(folder / "raw" / "photos.tar")) as writer:
        for number in range(ROWS):
            writer.write({"__key__": f"{number:03d}", "jpg": jpeg(number), "txt": str(captions(number)[0]["text"])})
    reader = open_source(SourceConfig(path=folder / "raw"))
    samples = [sample for shard in reader.shards() for sample in reader.samples(shard)]
    columns: dict[str, list[object]] = {
        name: [getattr(sample, name) for sample in samples] for name in ("key", "shard", "member", "offset", "size")
    }
    columns |= {
        "sha256": [hashlib.sha256(jpeg(number)).hexdigest() for number in range(ROWS)],
        "width": [160] * ROWS,
        "height": [160] * ROWS,
        "captions": [captions(number) for number in range(ROWS)],
        "cluster": list(columns["key"]),
    }
    rows = table(ROWS)
    for name, values in columns.items():
        field = rows.schema.field(name)
        rows = rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))
    write_generation(folder / "index", rows, tokenizer="t", operators={"aesthetic": {}})
    return folder
