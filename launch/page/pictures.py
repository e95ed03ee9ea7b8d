"""Thumbnails of samples, read again from where they were curated; whatever cannot be shown says why."""

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

from PIL import Image

from producer.picture import PictureError, decode
from producer.source.reader import SourceConfig, open_source
from producer.source.shard import Reader, SourceError

# Pixels of the longest side, and bytes of all pictures of a page together: three quarters of what base64 makes of them.
_SIDE, _BYTES = 144, 2_700_000
_QUALITY = 62
# Pictures fetched at a time: far sources answer slowly, and no more of them are held than these.
_AHEAD = 8


class Thumbnail(NamedTuple):
    """A picture as a data URL, or why there is none."""

    url: str
    why: str = ""


class Pictures:
    """Where the samples of a page are read; without a source, all are left out with the reason."""

    def __init__(self, source: SourceConfig | None, *, named: bool) -> None:
        """`named`: only samples whose index row names this source are in it."""
        self._reader: Reader | None = None
        self._source, self._named, self._left = source, named, _BYTES
        self._why = "give --config or --source to see pictures"
        if source is not None:
            try:
                self._reader = open_source(source)
            except (SourceError, OSError) as error:
                self._why = str(error)

    @property
    def why(self) -> str:
        """Why no picture can be shown at all; "" if they can."""
        return "" if self._reader else self._why

    def of(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Thumbnail]:
        """A thumbnail of each index row."""
        waiting = iter(rows)
        with ThreadPoolExecutor(_AHEAD) as pool:
            while part := list(islice(waiting, _AHEAD)):
                yield from (self._shrink(raw) for raw in pool.map(self._read, part))

    def _read(self, row: Mapping[str, Any]) -> bytes | str:
        """The picture's bytes, or why they cannot be had."""
        if self._reader is None:
            return self._why
        assert self._source is not None
        name, _ = self._source.of(row["shard"])
        if self._named and row["source"] != name:
            return f"of source {row['source']!r}, which is no source of the config"
        if not row["height"]:
            return "not a readable picture"
        try:
            raw = self._reader.read(row["shard"], row["member"], row["offset"], row["size"])
        except (SourceError, OSError) as error:
            return str(error)
        if hashlib.sha256(raw).hexdigest() != row["sha256"]:
            return "has changed since it was curated"
        return raw

    def _shrink(self, raw: bytes | str) -> Thumbnail:
        if isinstance(raw, str):
            return Thumbnail("", raw)
        if self._left <= 0:
            return Thumbnail("", f"left out: the page's pictures take {_BYTES / 1e6:.1f} MB")
        try:
            picture = decode(raw)
        except PictureError as error:
            return Thumbnail("", str(error))
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
        packed = io.BytesIO()
        picture.save(packed, "WEBP", quality=_QUALITY)
        self._left -= packed.tell()
        return Thumbnail(f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode()}")
