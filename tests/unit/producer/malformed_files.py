"""Tars, parquet files and captions that lie, climb out, break off or are merely odd, made in code.

Every file holds at least one sound sample beside what is wrong with it, unless nothing of it can be read.
"""

import base64
import functools
import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.unit.producer.malformed_pictures import ANY, drawn, encoded

SOUND = encoded(drawn(), "JPEG")


class File(NamedTuple):
    """A file as an input."""

    name: str
    raw: bytes
    good: int  # samples that must be delivered
    reason: str  # in the one that is not, ANY for any; "": none is dropped


def info(name: str, size: int = len(SOUND), kind: bytes = tarfile.REGTYPE, **more: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.type = size, kind
    for field, value in more.items():
        setattr(found, field, value)
    return found


def member(head: tarfile.TarInfo, body: bytes = SOUND, form: int = tarfile.GNU_FORMAT) -> bytes:
    return head.tobuf(form, "utf-8", "surrogateescape") + body + bytes(-len(body) % 512)


def sound(stem: str) -> bytes:
    return member(info(f"{stem}.jpg")) + member(info(f"{stem}.txt", 5), b"words")


END = bytes(1024)
BEFORE, AFTER = sound("before"), sound("next")


def between(*raw: bytes) -> bytes:
    return BEFORE + b"".join(raw) + AFTER + END


def pax(*records: bytes, size: int | None = None) -> bytes:
    """An extended header of records as they are."""
    body = b"".join(records)
    return member(info("pax", len(body) if size is None else size, tarfile.XHDTYPE), body)


def record(key: str, value: str | bytes) -> bytes:
    body = f" {key}=".encode() + (value.encode() if isinstance(value, str) else value) + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


@functools.cache
def tars() -> tuple[File, ...]:
    """Archives whose names, types, sizes or bytes are not to be trusted."""
    return (*_names(), *_lies(), *_broken_tars())


def _names() -> Iterator[File]:
    out = "leads out of the shard"
    for name in ("../x.jpg", "../../../../etc/x.jpg", "/etc/x.jpg", "a/../../x.jpg", "./../x.jpg", "//x.jpg"):
        yield File(f"name {name}", between(member(info(name))), 2, out)
        yield File(f"pax name {name}", between(pax(record("path", name)), member(info("x.jpg"))), 2, out)
    yield File("a name with NUL", between(pax(record("path", "x\0.jpg")), member(info("x.jpg"))), 2, out)
    long = "n" * 5_000 + ".jpg"
    yield File("a name of 5,000 bytes", between(pax(record("path", long)), member(info("x.jpg"))), 2, "a name of 5004")
    for name in (
        "图片/猫.jpg",
        "emoji 🐈.jpg",
        "rtl \u202ecat.jpg",
        "line\nbreak.jpg",
        "tab\t.jpg",
        "C:\\cat.jpg",
        " .jpg",
    ):
        yield File(f"name {name!r}", between(member(info(name))), 3, "")
    yield File("a name in latin-1", between(member(info("caf\udce9.jpg"))), 3, "")
    for what, kind in {
        "symlink": tarfile.SYMTYPE,
        "hard link": tarfile.LNKTYPE,
        "character device": tarfile.CHRTYPE,
        "block device": tarfile.BLKTYPE,
        "fifo": tarfile.FIFOTYPE,
    }.items():
        link = info("x.jpg", 0, kind, linkname="/etc/passwd")
        yield File(what, between(member(link, b"")), 2, "not a plain file")
        claims = info("x.jpg", 10**6, kind, linkname="../next.jpg")
        yield File(f"{what} that claims data", between(member(claims, b"")), 2, "not a plain file")
    yield File("caption by symlink", between(member(info("before.json", 0, tarfile.SYMTYPE), b"")), 2, "")
    yield File("old sparse", between(member(info("x.jpg", kind=tarfile.GNUTYPE_SPARSE))), 2, "a sparse file")
    for version in ("GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size"):
        yield File(version, between(pax(record(version, "1")), member(info("x.jpg"))), 2, "a sparse file")
    yield File("an unknown type", between(member(info("x.jpg", kind=b"Z"))), 2, "not a plain file")
    yield File("a volume's name", between(member(info("x.jpg", 0, b"V"), b"")), 2, "not a plain file")
    yield File("a folder called x.jpg", between(member(info("x.jpg", 0, tarfile.DIRTYPE), b"")), 2, "")
    yield File("one name twice", between(sound("x"), sound("x")), 2, "2 images in one sample")
    yield File("two images", between(sound("x"), member(info("x.png"))), 2, "2 images in one sample")
    yield File("no image", between(member(info("x.txt", 5), b"words")), 2, "no image among its members")
    yield File("a tar in a tar", between(member(info("x.tar", len(BEFORE)), BEFORE)), 2, "no image among its members")


def _lies() -> Iterator[File]:
    for size in ("999999999999", "-5", "1e3", "0x10", "", "9" * 40, "٣", "5 5"):
        raw = between(pax(record("size", size)), member(info("x.jpg")))
        yield File(f"pax size {size!r}", raw, 1, ANY)
    yield File("pax size too small", between(pax(record("size", "3")), member(info("x.jpg"))), 1, ANY)
    right = record("size", str(len(SOUND)))
    yield File("pax size that is right", between(pax(right), member(info("x.jpg", 1), SOUND)), 3, "")
    for bad in (
        b"99999999 path=x\n",
        b"3 a=b\n",
        b"-4 a=b\n",
        b"no number\n",
        b"12 path\n" * 9,
        b"7 a=b\n\xff\xff",
        b"\n",
    ):
        yield File(f"pax record {bad[:9]!r}", between(pax(bad), member(info("x.jpg"))), 1, ANY)
    yield File("pax of two megabytes", between(pax(b"x" * (2 << 20)), member(info("x.jpg"))), 1, "the limit is")
    yield File("pax that claims a gigabyte", between(pax(b"x", size=1 << 30), member(info("x.jpg"))), 1, "claims")
    yield File("pax over pax", between(*[pax(record("path", "../x.jpg"))] * 50, member(info("x.jpg"))), 2, "leads out")
    everyone = info("all", len(right), tarfile.XGLTYPE)
    yield File("global pax that renames all", between(member(everyone, record("path", "../x")), sound("x")), 3, "")
    for size in (1 << 40, 10**9, len(between())):
        yield File(f"size {size}", BEFORE + member(info("x.jpg", size)) + AFTER + END, 1, "are left")
    head = bytearray(member(info("x.jpg")))
    for what, value in {
        "negative": b"\xff" * 12,
        "of 2^80": b"\x80" + b"\xff" * 11,
        "no number": b"abcdefghijk\0",
    }.items():
        head[124:136] = value
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head[:512])
        yield File(f"binary size {what}", between(bytes(head)), 1, ANY)
    for kind, what in ((tarfile.GNUTYPE_LONGNAME, "long name"), (tarfile.GNUTYPE_LONGLINK, "long link")):
        yield File(f"{what} of a gigabyte", between(member(info("l", 1 << 30, kind), b"x"), sound("x")), 1, ANY)
        yield File(f"{what} and no member", BEFORE + member(info("l", 5, kind), b"x.jpg") + END, 1, "")
    climbing = member(info("l", 9, tarfile.GNUTYPE_LONGNAME), b"../x.jpg\0")
    yield File("a long name that climbs", between(climbing, member(info("x.jpg"))), 2, "leads out")


def _broken_tars() -> Iterator[File]:
    raw = between()
    start = len(BEFORE)
    for at in (start + 1, start + 300, start + 511):
        yield File(f"cut in a header at {at}", raw[:at], 1, ANY)
    for at in (start + 512, start + 700):
        yield File(f"cut in a picture at {at}", raw[:at], 1, ANY)
    yield File("without its end", BEFORE + AFTER, 2, "empty header")
    yield File("junk after its end", raw + b"junk" * 999, 2, "")
    for at, what in ((0, "name"), (124, "size"), (148, "checksum"), (156, "type"), (257, "magic")):
        bent = bytearray(raw)
        bent[start + at] ^= 0x5A
        yield File(f"a header's {what} bent", bytes(bent), 1, ANY)
    yield File("junk between members", BEFORE + b"j" * 512 + AFTER + END, 1, ANY)
    yield File("zeros between members", BEFORE + bytes(512) + AFTER + END, 1, "another begins")
    yield File("two tars in one", raw + raw, 2, "another begins")
    yield File("two tars in one, padded", raw + bytes(9_216) + raw, 2, "another begins")
    for what, content in {
        "html": b"<html>" * 200,
        "gzip": b"\x1f\x8b\x08" + bytes(600),
        "a jpeg": SOUND,
        "one byte": b"x",
        "ones": b"\xff" * 2048,
    }.items():
        yield File(f"{what} as .tar", content, 0, ANY)
    yield File("20,000 empty members", between(member(info("x.bin", 0), b"") * 20_000), 2, "no image among its members")


def captions() -> dict[str, tuple[str, bytes, int]]:
    """Name -> ending, content, and how many captions are to come of it."""
    texts: dict[str, tuple[bytes, int]] = {
        "empty": (b"", 0),
        "blank": (b" \n\t ", 0),
        "10 MB": (b"word " * 2_000_000, 0),
        "one over the limit": (b"x" * 65_537, 0),
        "at the limit": (b"x" * 65_536, 1),
        "NUL": (b"zero\0byte", 0),
        "escape": (b"\x1b[2Jcleared", 0),
        "bell": (b"bell\x07", 0),
        "C1 control": ("next\x85line".encode(), 0),
        "latin-1": ("café".encode("latin-1"), 0),
        "gbk": ("昆明湖".encode("gbk"), 0),
        "utf-16": ("words".encode("utf-16"), 0),
        "utf-32": ("words".encode("utf-32"), 0),
        "overlong": (b"\xc0\xaf", 0),
        "surrogate": (b"\xed\xa0\x80", 0),
        "beyond unicode": (b"\xf4\x90\x80\x80", 0),
        "cut in a letter": ("图片".encode()[:-1], 0),
        "lone continuation": (b"\x80abc", 0),
        "a mark alone": (b"\xef\xbb\xbf", 0),
        "a mark and words": (b"\xef\xbb\xbfwords", 1),
        "chinese": ("昆明湖边".encode(), 1),
        "rtl": ("\u202eabc".encode(), 1),
        "4,000 accents": (("a" + "\u0301" * 4_000).encode(), 1),
        "template": (b"<|im_end|><|im_start|>system", 1),
        "jpeg": (SOUND, 0),
        "ones": (b"\xff" * 999, 0),
    }
    said: dict[str, tuple[bytes, int]] = {
        "no JSON": (b"{", 0),
        "deep": (b"[" * 200_000, 0),
        "deep tables": (b'{"a":' * 100_000, 0),
        "20 MB": (b'{"captions": {"a": "' + b"x" * 20_000_000 + b'"}}', 0),
        "a number": (b"5", 0),
        "a list": (b'{"captions": ["a"]}', 0),
        "numbers": (b'{"captions": {"a": 5}}', 0),
        "null": (b'{"captions": null}', 0),
        "infinity": (b'{"captions": {"a": Infinity}}', 0),
        "half a pair": (b'{"captions": {"a": "\\ud800"}}', 0),
        "half a pair as key": (b'{"captions": {"\\ud800": "a"}}', 0),
        "a control": (b'{"captions": {"a": "\\u0000"}}', 0),
        "a huge number": (b'{"captions": {"a": ' + b"9" * 10_000 + b"}}", 0),
        "same key twice": (b'{"captions": {"a": "x", "a": "y"}}', 1),
        "not UTF-8": (b'{"captions": {"a": "\xff"}}', 0),
        "many": (json.dumps({"captions": {f"{n}": "x" for n in range(500)}}).encode(), 500),
        "one good, one not": (b'{"captions": {"a": "x", "b": 5}}', 1),
    }
    found = {f"txt {name}": ("txt", raw, number) for name, (raw, number) in texts.items()}
    return found | {f"json {name}": ("json", raw, number) for name, (raw, number) in said.items()}


def table(images: Any = None, texts: Any = None, **options: Any) -> bytes:
    """A parquet file of two row groups of three rows."""
    out = io.BytesIO()
    columns = {"image": images if images is not None else [SOUND] * 6, "caption": texts or ["words"] * 6}
    pq.write_table(pa.table(columns), out, **({"row_group_size": 3} | options))
    return out.getvalue()


_PLAIN = {"compression": "NONE", "use_dictionary": False}


@functools.cache
def parquets() -> tuple[File, ...]:
    """Wrong types, damaged bytes, claims and bombs."""
    return (*_types(), *_broken_parquets(), *_claims())


def _types() -> Iterator[File]:
    for name, options in {
        "snappy": {},
        "plain": _PLAIN,
        "zstd": {"compression": "zstd"},
        "gzip": {"compression": "gzip"},
        "v2": {"data_page_version": "2.0"},
        "checksums": {"write_page_checksum": True},
    }.items():
        yield File(f"sound, {name}", table(**options), 6, "")
    struct = pa.array(
        [{"bytes": SOUND, "path": None}] * 5 + [None], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    yield File("structs, one of them null", table(struct), 5, "no image in its row")
    yield File("large binary", table(pa.array([SOUND] * 6, pa.large_binary())), 6, "")
    yield File("null images", table(pa.array([SOUND, None] * 3, pa.binary())), 3, "no image in its row")
    yield File("empty images", table([SOUND, b""] * 3), 3, "empty file")
    yield File("images that are text", table([SOUND, b"words"] * 3), 3, "not an image of a known format")
    yield File("null captions", table(texts=["words", None] * 3), 6, "")
    wrong = "which is neither bytes nor a struct of them"
    for name, images in {
        "numbers": pa.array(range(6)),
        "text": pa.array(["picture"] * 6),
        "lists of bytes": pa.array([[SOUND]] * 6),
        "lists of lists of structs": pa.array([[[{"bytes": SOUND}]]] * 6),
        "structs without bytes": pa.array([{"path": "/etc/passwd"}] * 6),
        "structs of structs": pa.array([{"bytes": {"bytes": SOUND}}] * 6),
        "maps": pa.array([[("bytes", SOUND)]] * 6, pa.map_(pa.string(), pa.binary())),
        "fixed sizes": pa.array([b"12345678"] * 6, pa.binary(8)),
        "nothing": pa.nulls(6),
        "decimals": pa.array([1, 2, 3, 4, 5, 6], pa.decimal128(9)),
    }.items():
        yield File(f"images of {name}", table(images), 0, wrong)
    for name, texts in {
        "numbers": pa.array(range(6)),
        "lists": pa.array([["words"]] * 6),
        "nothing": pa.nulls(6),
    }.items():
        yield File(f"captions of {name}", table(texts=texts), 0, "which is no text")
    out = io.BytesIO()
    pq.write_table(pa.table({"jpg": [SOUND]}), out)
    yield File("other columns", out.getvalue(), 0, "no column 'image' among jpg")
    twice = pa.Table.from_arrays([pa.array([SOUND]), pa.array([SOUND]), pa.array(["w"])], ["image", "image", "caption"])
    out = io.BytesIO()
    pq.write_table(twice, out)
    yield File("one column twice", out.getvalue(), 0, "no column 'image' among")


def _broken_parquets() -> Iterator[File]:
    raw = table()
    for share in (0.001, 0.3, 0.6, 0.9, 0.999):
        yield File(f"cut at {share}", raw[: max(1, int(share * len(raw)))], 0, ANY)
    for what, content in {
        "nothing": b"PAR1PAR1",
        "html": b"<html>" * 99,
        "zeros": bytes(999),
        "a footer of zeros": b"PAR1" + bytes(400) + b"\x90\1\0\0PAR1",
        "a footer of ones": b"PAR1" + b"\xff" * 400 + b"\x90\1\0\0PAR1",
        "a footer of four gigabytes": raw[:-8] + b"\xff\xff\xff\xffPAR1",
        "an encrypted footer": raw[:-4] + b"PARE",
        "arrow": b"ARROW1\0\0" + bytes(99),
    }.items():
        yield File(f"{what} as .parquet", content, 0, ANY)
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    draw = np.random.default_rng(3)
    for number in range(12):
        bent = bytearray(raw)
        at = int(draw.integers(footer, len(raw) - 8)) if number < 8 else int(draw.integers(4, footer))
        bent[at] ^= 1 << int(draw.integers(8))
        yield File(f"bent {'footer' if number < 8 else 'page'} {number}", bytes(bent), -1, ANY)


def _claims() -> Iterator[File]:
    raw = table(**_PLAIN)
    for name, size in (("two gigabytes", 2**31 - 1), ("less than nothing", -5)):
        # The first page's header: type 0, then its two sizes as zigzag varints.
        sizes = slice(4, 4 + _header(raw, 4))
        head = bytes([0x15, 0x00, 0x15]) + _varint(size) + b"\x15" + _varint(len(SOUND) * 3) + b"\0"
        yield File(f"a page that claims {name}", raw[: sizes.start] + head + raw[4 + len(head) :], 3, "unfolds to")
    packed = table([bytes(8 << 20)], ["words"], compression="zstd", use_dictionary=False)
    head = bytes([0x15, 0x00, 0x15]) + _varint((8 << 20) + 4 + 6)
    at = packed.index(head[:3])
    yield File(
        "a page that unfolds to more than it says",
        packed[:at] + head[:3] + _varint(3_000_000) + packed[at + 7 :],
        0,
        ANY,
    )
    entry = pa.array([SOUND + bytes(6 << 20)])
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 600, pa.int32()), entry)
    options = {
        "compression": "zstd",
        "dictionary_pagesize_limit": 8 << 20,
        "row_group_size": 600,
        "store_schema": False,
    }
    raw = table(repeated, ["words"] * 600, **options)
    yield File("a dictionary that unfolds for each row", raw, 0, "unfolds to")
    extension = pa.table({"image": [SOUND], "caption": ["w"], "more": pa.array([b"1" * 16], pa.uuid())})
    out = io.BytesIO()
    pq.write_table(extension, out)
    assert b"ARROW:extension:name" in base64.b64decode(pq.ParquetFile(out).metadata.metadata[b"ARROW:schema"])
    yield File("Arrow extension types", out.getvalue(), 0, "which may carry code")


def _header(raw: bytes, at: int) -> int:
    from producer.source.pages import _page

    return _page(lambda offset, size: raw[offset : offset + size], at, len(raw))[1]


def _varint(value: int) -> bytes:
    zigzag, out = (value << 1) ^ (value >> 63), []
    while zigzag >= 0x80:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes([*out, zigzag])
