"""What a parquet file really holds, read before Arrow unfolds it: its footer's place, and the sizes its pages claim.

A footer says how large a column is, and nobody checks: a page of a few kilobytes may unfold to two gigabytes. Page
headers stand in the open, in Thrift's compact protocol (parquet.thrift, PageHeader), and are walked here.
"""

import base64
import re
from collections.abc import Callable
from typing import NamedTuple

MAGIC = b"PAR1"

_MAX_FOOTER = 64 << 20  # bytes
_MAX_PAGE = 256 << 20  # bytes unfolded: some thousand images, which careless writers put into one page
# Arrow and parquet-mr begin another encoding at one megabyte. A dictionary's entry unfolds again for each row.
_MAX_DICTIONARY = 4 << 20
_MAX_HEADER = 1 << 20
_DICTIONARY = 2  # of PageType

Read = Callable[[int, int], bytes]  # offset, size


class PageError(ValueError):
    """A parquet file, or a column chunk in it, is not what it claims or unfolds to more than is allowed."""


class _ShortError(Exception):
    """The header goes on beyond the bytes at hand."""


class Page(NamedTuple):
    kind: int
    unfolded: int  # bytes
    stored: int


def check_footer(read: Read, size: int) -> None:
    """Raise PageError unless a file of `size` bytes ends in a footer that may be parsed."""
    if size < 12 or read(0, 4) != MAGIC:
        raise PageError(f"not a parquet file: {size} bytes, begins with {read(0, min(4, size))!r}")
    tail = read(size - 8, 8)
    if tail[4:] == b"PARE":
        raise PageError("its footer is encrypted")
    if tail[4:] != MAGIC:
        raise PageError("it ends before its footer")
    length = int.from_bytes(tail[:4], "little")
    if not 0 < length <= min(size - 12, _MAX_FOOTER):
        raise PageError(f"its footer claims {length} bytes of {size}, the limit is {_MAX_FOOTER}")
    footer = read(size - 8 - length, length)
    for found in re.finditer(rb"ARROW:schema.{1,8}?([A-Za-z0-9+/]{16,}={0,2})", footer, re.DOTALL):
        whole = found[1][: len(found[1]) // 4 * 4]
        if b"ARROW:extension:name" in base64.b64decode(whole):
            # Types that a library registers run its code to be read.
            raise PageError("it holds Arrow extension types, which may carry code; write plain columns")


def check_chunk(read: Read, start: int, end: int) -> None:
    """Raise PageError if a page of the column chunk from `start` to `end` unfolds to more than is allowed."""
    at = start
    while at < end:
        page, length = _page(read, at, end)
        limit = _MAX_DICTIONARY if page.kind == _DICTIONARY else _MAX_PAGE
        if not 0 <= page.unfolded <= limit:
            raise PageError(f"a page at byte {at} unfolds to {page.unfolded} bytes, the limit is {limit}")
        if not 0 <= page.stored <= end - at - length:
            raise PageError(f"a page at byte {at} claims {page.stored} bytes, {end - at - length} are left")
        at += length + page.stored


def _page(read: Read, at: int, end: int) -> tuple[Page, int]:
    """The page header at byte `at`, and its length."""
    wanted = 256
    while True:
        raw = read(at, min(wanted, end - at))
        try:
            fields, length = _struct(raw, 0)
            break
        except _ShortError:
            wanted *= 16
            if len(raw) >= end - at or wanted > _MAX_HEADER:
                raise PageError(f"the page header at byte {at} has no end") from None
    if not {1, 2, 3} <= fields.keys():
        raise PageError(f"the page header at byte {at} is malformed")
    return Page(fields[1], fields[2], fields[3]), length


def _struct(raw: bytes, at: int, depth: int = 0) -> tuple[dict[int, int], int]:
    """The integer fields of a struct by their number, and where it ends."""
    if depth > 8:
        raise PageError("a page header is nested too deeply")
    found: dict[int, int] = {}
    number = 0
    while (head := _byte(raw, at)) != 0:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _zigzag(raw, at)
        value, at = _value(raw, at, head & 15, depth)
        if value is not None:
            found[number] = value
    return found, at + 1


def _value(raw: bytes, at: int, kind: int, depth: int) -> tuple[int | None, int]:
    if kind in (1, 2):  # a boolean is in its field's header
        return None, at
    if kind == 3:
        return None, at + 1
    if kind in (4, 5, 6):
        return _zigzag(raw, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        size, at = _varint(raw, at)
        if at + size > len(raw):
            raise _ShortError
        return None, at + size
    if kind == 12:
        return None, _struct(raw, at, depth + 1)[1]
    # No page header has lists, sets or maps.
    raise PageError(f"a page header holds a field of type {kind}")


def _zigzag(raw: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(raw, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = _byte(raw, at)
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise PageError("a page header holds a number without an end")


def _byte(raw: bytes, at: int) -> int:
    if at >= len(raw):
        raise _ShortError
    return raw[at]
