"""Seeded mutations of sound files through our own parsers: members, rows and captions, or an error of a known name."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from producer.picture import PictureError, decode
from producer.source.caption import read_captions
from producer.source.pages import PageError, check_chunk, check_footer
from producer.source.parquet import Parquet, ParquetConfig
from producer.source.shard import SourceError, is_inside, is_text
from producer.source.store import LocalStore
from producer.source.tars import DamageError, list_members
from tests.unit.producer.malformed_files import END, SOUND, captions, info, member, pax, record, table
from tests.unit.producer.malformed_pictures import whole

ROOT = Path(__file__).parents[3]

# Bytes that parsers trip over.
_SPECIAL = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"-1",
    b"99999999",
    b"../",
]


def mutated(raw: bytes, draw: np.random.Generator) -> bytes:
    """`raw` with one to six of: a bit flipped, bytes put over it, a piece cut, doubled, moved, zeroed, the end cut."""
    for _ in range(int(draw.integers(1, 7))):
        if not raw:
            return raw
        at, length = int(draw.integers(len(raw))), int(draw.integers(1, 64))
        piece = raw[at : at + length]
        match int(draw.integers(7)):
            case 0:
                raw = raw[:at] + bytes([raw[at] ^ (1 << int(draw.integers(8)))]) + raw[at + 1 :]
            case 1:
                special = _SPECIAL[int(draw.integers(len(_SPECIAL)))]
                raw = raw[:at] + special + raw[at + len(special) :]
            case 2:
                raw = raw[:at] + raw[at + length :]
            case 3:
                raw = raw[:at] + piece * int(draw.integers(2, 5)) + raw[at:]
            case 4:
                to = int(draw.integers(len(raw)))
                raw = raw[:to] + piece + raw[to + len(piece) :]
            case 5:
                raw = raw[:at] + bytes(len(piece)) + raw[at + len(piece) :]
            case _:
                raw = raw[: max(at, len(raw) // 2)]
    return raw


def tar(raw: bytes) -> None:
    try:
        for one in list_members(io.BytesIO(raw)):
            assert 0 <= one.offset <= one.offset + one.size <= len(raw)
            assert one.fault or is_inside(one.name)
            assert is_text(one.name)
    except DamageError as error:
        assert "byte" in str(error) or "tar" in str(error)


def caption(raw: bytes) -> None:
    for ending in ("txt", "json"):
        said = read_captions(ending, len(raw), lambda: raw)
        for text in (*said.texts, *said.texts.values(), *said.faults):
            text.encode()


def page(raw: bytes) -> None:
    def read(offset: int, size: int) -> bytes:
        return raw[offset : offset + size]

    for check in (lambda: check_footer(read, len(raw)), lambda: check_chunk(read, min(4, len(raw)), len(raw))):
        try:
            check()
        except PageError as error:
            assert str(error)


def picture(raw: bytes) -> None:
    try:
        assert decode(raw).mode == "RGB"
    except PictureError as error:
        assert str(error) and "MemoryError" not in str(error)


def sound_tars() -> list[bytes]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a.jpg", "图" * 60 + ".jpg", "deep/" * 30 + "x.txt"):
            archive.addfile(info(name, 10), io.BytesIO(b"0123456789"))
    named = pax(record("path", "x.jpg"), record("size", "10")) + member(info("y.jpg", 10), b"0123456789")
    long = member(info("l", 300, tarfile.GNUTYPE_LONGNAME), b"n" * 300) + member(info("y.jpg", 4), b"0123")
    return [out.getvalue(), named + long + END]


PARSERS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "tar": (tar, sound_tars),
    "caption": (caption, lambda: [raw[:2_000] for _, raw, _ in captions().values()]),
    "page": (page, lambda: [table(), table(compression="NONE", use_dictionary=False)]),
    "picture": (picture, lambda: list(whole().values())),
}


def fuzz(name: str, rounds: int, seed: int) -> None:
    parse, make = PARSERS[name]
    draw, seeds = np.random.default_rng(seed), make()
    for number in range(rounds):
        raw = mutated(seeds[number % len(seeds)], draw)
        try:
            parse(raw)
        except Exception as error:
            raise AssertionError(f"{name}, seed {seed}, round {number}: {raw[:4000]!r}") from error


@pytest.mark.parametrize("name", PARSERS)
def test_mutated_input_gives_what_is_there_or_a_named_error(name: str) -> None:
    fuzz(name, 200, seed=1)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", PARSERS)
def test_much_mutated_input_gives_what_is_there_or_a_named_error(name: str) -> None:
    for seed in range(100):
        fuzz(name, 2_000, seed)


def fuzz_parquet(folder: Path, rounds: int, seed: int) -> None:
    """Mutated parquet files through the whole reader, Arrow included; for a process of its own, which may crash."""
    draw = np.random.default_rng(seed)
    sound = [
        table(),
        table(compression="NONE", use_dictionary=False),
        table(compression="zstd", data_page_version="2.0"),
    ]
    out = io.BytesIO()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array([{"bytes": SOUND, "path": "x"}] * 6, kind), "caption": ["w"] * 6}), out)
    sound.append(out.getvalue())
    folder.mkdir(exist_ok=True)
    for number in range(rounds):
        raw = mutated(sound[number % len(sound)], draw)
        if number % 2:
            # Mutations fall evenly on the pictures, which are most of a file: the footer, and what leads to it, too.
            whole = sound[number % len(sound)]
            cut = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
            footer = mutated(whole[cut:-8], draw)
            raw = whole[:cut] + footer + len(footer).to_bytes(4, "little") + b"PAR1"
        (folder / "a.parquet").write_bytes(raw)
        print(seed, number, flush=True)
        reader = Parquet(LocalStore(folder), ParquetConfig())
        for shard in reader.shards():
            for sample in reader.samples(shard):
                assert sample.fault or sample.size >= 0
                try:
                    reader.read(sample.shard, sample.member, sample.offset, sample.size)
                except SourceError as error:
                    assert str(error)


def parquet_process(folder: Path, rounds: int, seed: int) -> None:
    code = "import sys; from pathlib import Path; from tests.unit.producer.test_fuzz import fuzz_parquet as f; "
    code += "f(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"
    command = [sys.executable, "-X", "faulthandler", "-c", code, str(folder), str(rounds), str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ, check=False)
    assert done.returncode == 0, (done.stdout[-40:], done.stderr[-3000:])


def test_mutated_parquet_never_crashes_the_reader(tmp_path: Path) -> None:
    parquet_process(tmp_path / "x", 150, seed=1)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_much_mutated_parquet_never_crashes_the_reader(tmp_path: Path) -> None:
    for seed in range(20):
        parquet_process(tmp_path / "x", 2_000, seed)
