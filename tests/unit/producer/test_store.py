"""What sources stand on: blocks of far files, tries with bounds, and who is blamed."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.source import ranged
from producer.source.ranged import RangedFile
from producer.source.remote import GoneError, RemoteConfig, RemoteStore
from producer.source.retry import GaveUpError, TransientError, persist
from producer.source.shard import SourceError, UnreadableError
from producer.source.store import File, LocalStore

CONTENT = np.random.default_rng(0).bytes(1_000)


@given(st.lists(st.tuples(st.integers(0, 1_100), st.integers(0, 400)), max_size=12), st.integers(1, 300))
def test_a_far_file_reads_as_the_near_one_does(reads: list[tuple[int, int]], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranged, "_BLOCK", block)
        far = RangedFile(lambda offset, size: CONTENT[offset : offset + size], len(CONTENT), lambda: None)
        near = io.BytesIO(CONTENT)
        for offset, size in reads:
            assert far.seek(offset) == near.seek(offset)
            assert far.read(size) == near.read(size) and far.tell() == near.tell()
            assert far.pread(offset, size) == CONTENT[offset : offset + size]
        assert far.seek(-5, io.SEEK_END) == near.seek(-5, io.SEEK_END) and far.read() == near.read()


def test_short_reads_in_order_fetch_each_block_once_and_a_file_that_shrank_is_named() -> None:
    asked: list[int] = []

    def fetch(offset: int, size: int) -> bytes:
        asked.append(offset)
        return bytes(min(size, 9 << 20)) if offset < 8 << 20 else b""

    far = RangedFile(fetch, 10 << 20, lambda: None)
    for offset in range(0, 8 << 20, 64 << 10):
        assert far.pread(offset, 512) == bytes(512)
    assert asked == [0, 4 << 20]
    with pytest.raises(UnreadableError, match="ends at 8388608 of 10485760 bytes"):
        far.pread(9 << 20, 5)


def test_tries_are_bounded_in_number_and_in_time() -> None:
    calls: list[float] = []

    def fails(left: float) -> bytes:
        calls.append(left)
        raise TransientError("HTTP 503")

    with pytest.raises(GaveUpError, match=r"HTTP 503 \(3 tries in"):
        persist(fails, tries=3, deadline_s=60)
    assert len(calls) == 3 and calls == sorted(calls, reverse=True)
    began = time.monotonic()
    with pytest.raises(GaveUpError):
        persist(fails, tries=10**6, deadline_s=0.5)
    assert time.monotonic() - began < 20
    with pytest.raises(GoneError):
        persist(lambda left: (_ for _ in ()).throw(GoneError("gone")), tries=3, deadline_s=60)


class Store(RemoteStore):
    """A store of one file, which can be away, as can single files."""

    away = False
    bad = frozenset({"bad"})

    def _list(self, seconds: float) -> list[File]:
        return [File("a.tar", len(CONTENT), "s"), File("../b.tar", 5, "s"), File("/c.tar", 5, "s")]

    def _size(self, name: str, seconds: float) -> int:
        return len(self._fetch(name, 0, 10**9, seconds))

    def _fetch(self, name: str, offset: int, size: int, seconds: float) -> bytes:
        if self.away or name in self.bad:
            raise TransientError("no answer")
        if name != "a.tar":
            raise GoneError("not there")
        return CONTENT[offset : offset + size]

    def _probe(self, seconds: float) -> None:
        if self.away:
            raise TransientError("no answer")


def test_a_file_is_blamed_only_while_its_store_answers_otherwise() -> None:
    store = Store("s3://x/", RemoteConfig(tries=2, deadline_s=5))
    assert [file.name for file in store.files(".tar") if not file.fault] == ["a.tar"]
    assert all("leads out" in file.fault for file in store.files(".tar") if file.name != "a.tar")
    assert store.read("a.tar", 5, 9) == CONTENT[5:14]
    for name in ("bad", "missing"):
        with pytest.raises(UnreadableError, match=f"s3://x/{name}: cannot be read"):
            store.read(name, 0, 5)
    with pytest.raises(SourceError, match="not below s3://x"):
        store.read("../x", 0, 5)
    store.away = True
    for name in ("bad", "a.tar"):
        with pytest.raises(SourceError, match="cannot be read now") as caught:
            store.read(name, 0, 5)
        assert not isinstance(caught.value, UnreadableError)


def test_while_a_file_is_scanned_its_images_come_from_its_blocks() -> None:
    store = Store("s3://x", RemoteConfig(tries=1))
    with store.open("a.tar") as file:
        assert file.read(10) == CONTENT[:10]
        store.away = True
        assert store.read("a.tar", 990, 10) == CONTENT[990:]
    with pytest.raises(SourceError):
        store.read("a.tar", 990, 10)


def test_a_disk_that_cannot_read_one_file_is_that_files_fault_and_a_missing_one_is_the_sources(tmp_path: Path) -> None:
    (tmp_path / "a.tar").mkdir()
    store = LocalStore(tmp_path)
    assert store.files(".tar") == []
    with pytest.raises(UnreadableError, match=r"a\.tar: cannot be read: Is a directory"):
        store.read("a.tar", 0, 5)
    with pytest.raises(SourceError, match="No such file") as caught:
        store.read("b.tar", 0, 5)
    assert not isinstance(caught.value, UnreadableError)
