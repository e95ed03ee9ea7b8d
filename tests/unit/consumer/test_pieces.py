"""The checksum of a checkpoint's file: the same while it is written as when it is read back, and of all its bytes."""

import random
from pathlib import Path

import pytest

from consumer import pieces
from consumer.pieces import File, Hasher, mapped


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "BLOCK", 64)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 128, 129, 1000])
def test_what_is_hashed_while_written_is_what_is_read_back(tmp_path: Path, size: int) -> None:
    rng = random.Random(size)
    data, hasher, at = rng.randbytes(size), Hasher(), 0
    while at < size:
        step = rng.randrange(1, 200)
        hasher.update(memoryview(data)[at : at + step])
        at += step
    (tmp_path / "file").write_bytes(data)
    assert hasher.file() == File.of(mapped(tmp_path / "file")) and hasher.bytes == size


def test_any_bit_and_the_order_of_blocks_count(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(200)
    path = tmp_path / "file"

    def of(raw: bytes) -> File:
        path.write_bytes(raw)
        return File.of(mapped(path))

    whole = of(data)
    flips = [bytes([*data[:at], data[at] ^ 1 << bit, *data[at + 1 :]]) for at in range(200) for bit in (0, 7)]
    assert all(of(flip) != whole for flip in flips)
    assert of(data[64:128] + data[:64] + data[128:]) != whole
